"""manifest.json: what a folder of weights holds, and the comparison of names and shapes."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from anyv2v.checks import shown
from anyv2v.errors import InputError

FORMAT = 1
CONFIG, MANIFEST = "config.json", "manifest.json"
COMPONENTS = ("unet", "vae", "text", "vision")
"""Of a backbone whose config does not name its own."""
MOST_COMPONENTS = 16
COMPONENT = re.compile("[a-z0-9][a-z0-9_]*")
OF_THE_CLIPS = ("size", "frames", "fps")
"""What every config says among its defaults. What else stands there is how an edit is made, which a
saved source does not depend on."""
STABLE_DIFFUSION = "stable-diffusion"
IP_ADAPTER = "ip-adapter"
T2I_ADAPTER = "t2i-adapter"
MODELS = {
    STABLE_DIFFUSION: ("unet", "vae", "text"),
    IP_ADAPTER: ("adapter", "vision"),
    T2I_ADAPTER: ("adapter",),
}
"""What a config calls the models that are no backbone -> their components."""
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt")

Shapes = Mapping[str, tuple[int, ...]]


def read_json(path: Path) -> dict:
    """A file that holds one JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeEncodeError as error:
        # JSON can escape half of a pair of surrogates, which cannot be written as text again
        raise InputError(
            f"{path}: holds {error.object[error.start]!r}, half a character"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value


def write_json(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def components(config: dict) -> tuple[str, ...]:
    """The files of weights that a folder with this config has, without suffix.

    InputError for a list of the config's own that holds anything else than such names.
    """
    model = config.get("model")
    if isinstance(model, str):
        return MODELS.get(model, COMPONENTS)
    names = config.get("components", COMPONENTS)
    right = isinstance(names, (list, tuple)) and 1 <= len(names) <= MOST_COMPONENTS
    # a name that leads elsewhere could be a device that never ends, or somebody's file
    if not (right and all(isinstance(x, str) and COMPONENT.fullmatch(x) for x in names)):
        raise InputError(f"components: {shown(names)} is not a list of names of files")
    if len(set(names)) < len(names):
        raise InputError(f"components: {shown(names)} names one twice")
    return tuple(names)


def expected_files(components: Iterable[str]) -> set[str]:
    """All that a manifest names: weights and, where texts are read, the tokenizer."""
    components = tuple(components)
    tokenizer = TOKENIZER if "text" in components else ()
    return {*tokenizer, *(f"{component}.safetensors" for component in components)}


def read_manifest(folder: Path, components: Iterable[str] = COMPONENTS) -> dict[str, dict]:
    """File name -> {"sha256", "bytes"} and, for weights, "tensors": key -> [dtype, shape].

    Checks that every file is there and as long as it should be; verify.py looks at the bytes too.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_well_formed(facts) for facts in files.values()):
        raise InputError(f"{path}: is not a manifest: convert the weights again")
    # a name that leads elsewhere could be a device that never ends, or somebody's file
    ours = expected_files(components)
    if odd := sorted(ours ^ set(files)):
        does = "does not name" if odd[0] in ours else "names, as no manifest does,"
        raise InputError(f"{path}: {does} {odd[0]}")
    for name, facts in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise InputError(f"{folder / name}: is missing, the manifest names it") from error
        if size != facts["bytes"]:
            raise InputError(
                f"{folder / name}: has {size} bytes, the manifest says {facts['bytes']}: "
                "cut off or replaced; convert the weights again"
            )
    return files


def fingerprint(config: dict, files: Mapping[str, dict]) -> str:
    """One sha256 over a config and the sha256 of every file of a folder.

    Other defaults than those of the clips are left out: weights stay what they are with them.
    """
    if isinstance(defaults := config.get("defaults"), dict):
        clips = {name: value for name, value in defaults.items() if name in OF_THE_CLIPS}
        config = {**config, "defaults": clips}
    facts = {"config": config, "files": {name: files[name]["sha256"] for name in files}}
    try:
        text = json.dumps(facts, sort_keys=True)
    except RecursionError:
        raise InputError(f"{CONFIG}: is nested too deeply") from None
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def difference(found: Shapes, wanted: Shapes, limit: int | None = None) -> str:
    """What is missing, extra or misshapen, by name and in one line; "" if nothing is.

    limit: how many of each kind are spelled out.
    """
    missing = [f"{name} {wanted[name]}" for name in wanted if name not in found]
    extra = [f"{name} {found[name]}" for name in found if name not in wanted]
    misshapen = [
        f"{name} is {found[name]}, should be {wanted[name]}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    lists = {"missing": missing, "extra": extra, "misshapen": misshapen}
    return "; ".join(f"{kind}: {_listed(names, limit)}" for kind, names in lists.items() if names)


def _listed(names: list[str], limit: int | None) -> str:
    if limit is None or len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def _well_formed(facts) -> bool:
    return (
        isinstance(facts, dict)
        and isinstance(facts.get("sha256"), str)
        and isinstance(facts.get("bytes"), int)
        and isinstance(facts.get("tensors", {}), dict)
    )
