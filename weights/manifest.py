"""The files config.json and manifest.json of a weights folder, and the comparison of shapes."""

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
"""The components of a backbone whose config has no list of its own."""
MOST_COMPONENTS = 16
COMPONENT = re.compile("[a-z0-9][a-z0-9_]*")
VIDEO_DEFAULTS = ("size", "frames", "fps")
"""The defaults that every config has. Any others say how an edit is made, and a saved source does
not depend on them."""
STABLE_DIFFUSION = "stable-diffusion"
IP_ADAPTER = "ip-adapter"
T2I_ADAPTER = "t2i-adapter"
MODELS = {
    STABLE_DIFFUSION: ("unet", "vae", "text"),
    IP_ADAPTER: ("adapter", "vision"),
    T2I_ADAPTER: ("adapter",),
}
"""The "model" of a config that is not of a backbone -> its components."""
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt")

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""


def read_json(path: Path) -> dict:
    """Read a file that holds one JSON object; InputError if it does not."""
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
    """Write a JSON object in the form of our config.json and manifest.json."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def components(config: dict) -> tuple[str, ...]:
    """Return the names of the weight files, without suffix, of a folder with this config.

    Raises InputError where the config's own list of components holds anything but such names.
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
    """Return the files that a manifest lists: weights and, where text is read, the tokenizer."""
    components = tuple(components)
    tokenizer = TOKENIZER if "text" in components else ()
    return {*tokenizer, *(f"{component}.safetensors" for component in components)}


def read_manifest(folder: Path, components: Iterable[str] = COMPONENTS) -> dict[str, dict]:
    """Read the manifest: file name -> {"sha256", "bytes", "tensors"}.

    "tensors" is there for weights alone: key -> [dtype, shape]. Raises InputError where a file is
    missing or has another length; `verify.verify` compares the bytes too.
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
    """Return one sha256 in hex over a config and the sha256 of every file of a folder.

    Defaults other than VIDEO_DEFAULTS are left out, because they change nothing about the weights.
    """
    if isinstance(defaults := config.get("defaults"), dict):
        kept = {name: value for name, value in defaults.items() if name in VIDEO_DEFAULTS}
        config = {**config, "defaults": kept}
    facts = {"config": config, "files": {name: files[name]["sha256"] for name in files}}
    try:
        text = json.dumps(facts, sort_keys=True)
    except RecursionError:
        raise InputError(f"{CONFIG}: is nested too deeply") from None
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def difference(shapes: Shapes, expected: Shapes, limit: int | None = None) -> str:
    """List missing, extra and misshapen tensors in one line; "" if there are none.

    limit: how many of each kind are named; None names all.
    """
    missing = [f"{name} {expected[name]}" for name in expected if name not in shapes]
    extra = [f"{name} {shapes[name]}" for name in shapes if name not in expected]
    misshapen = [
        f"{name} is {shapes[name]}, should be {expected[name]}"
        for name in expected
        if name in shapes and tuple(shapes[name]) != tuple(expected[name])
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
