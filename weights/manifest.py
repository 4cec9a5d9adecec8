"""The files config.json and manifest.json of a weights folder, and the comparison of shapes."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from anyv2v.checks import shown
from anyv2v.errors import InputError

FORMAT = 1
"""Version of the format of weights folders."""
CONFIG, MANIFEST = "config.json", "manifest.json"
COMPONENTS = ("unet", "vae", "text", "vision")
"""Networks of a backbone (a video model) whose config.json has no list "components" of its own."""
MOST_COMPONENTS = 16
"""The most networks that a config.json may list."""
COMPONENT = re.compile("[a-z0-9][a-z0-9_]*")
"""Matches the allowed names of a network."""
VIDEO_DEFAULTS = ("size", "frames", "fps")
"""The "defaults" that every backbone's config.json has. Other defaults, such as steps and guidance,
only say how an edit is made and are left out of `fingerprint`."""
STABLE_DIFFUSION = "stable-diffusion"
IP_ADAPTER = "ip-adapter"
T2I_ADAPTER = "t2i-adapter"
CLIP = "clip"
MODELS = {
    STABLE_DIFFUSION: ("unet", "vae", "text"),
    IP_ADAPTER: ("adapter", "vision"),
    T2I_ADAPTER: ("adapter",),
    CLIP: ("text", "vision"),
}
"""The "model" in the config.json of an image model -> the names of its networks. The config.json of
a backbone (a video model) has no "model"."""
ORIGIN = "origin"
"""Key of the config.json of a CLIP: what it was trained on or by whom, such as "openai", or the
name of the folder that it was converted from. It is left out of `fingerprint`."""
TOKENIZER = ("tokenizer/vocab.json", "tokenizer/merges.txt")
"""The files of CLIP's tokenizer, relative to the weights folder."""
UNIGRAM_TOKENIZER = ("tokenizer/tokenizer.json",)
"""The file of UMT5's tokenizer, relative to the weights folder."""
TOKENIZERS = (TOKENIZER, UNIGRAM_TOKENIZER)
"""The files of each tokenizer that a weights folder may have."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""


def read_json(path: Path) -> dict:
    """Reads a file; raises InputError if it cannot be read or does not hold one JSON object."""
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
    """Writes a JSON object to a file, in the form of our config.json and manifest.json."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def components(config: dict) -> tuple[str, ...]:
    """Returns the names of the weight files, without suffix, of a folder with this config.json.

    Raises InputError if the config's own list "components" is not a list of 1 to 16 distinct plain
    names.
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


def expected_files(components: Iterable[str], listed: Collection[str] = ()) -> set[str]:
    """Returns the files, relative to the folder, that the manifest of a weights folder must list.

    They are the weights of each component (name of a network, such as "unet") and, if "text" is
    among the components, the files of a tokenizer: of the one whose first file is among the
    `listed` ones, else of CLIP's.
    """
    components = tuple(components)
    of_text = next((files for files in TOKENIZERS if files[0] in listed), TOKENIZER)
    tokenizer = of_text if "text" in components else ()
    return {*tokenizer, *(f"{component}.safetensors" for component in components)}


def read_manifest(folder: Path, components: Iterable[str] = COMPONENTS) -> dict[str, dict]:
    """Reads the manifest of a folder: file name -> {"sha256", "bytes", "tensors"}.

    "tensors", which weight files alone have, maps the name of a tensor to [dtype, shape].
    components: the names of the networks that the folder must hold.

    Raises InputError if the manifest is invalid or lists other files than `expected_files`, or if a
    file is missing or has another length. The content of the files is not read; see
    `verify.verify`.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_well_formed(facts) for facts in files.values()):
        raise InputError(f"{path}: is not a manifest: convert the weights again")
    # a name that leads elsewhere could be a device that never ends, or somebody's file
    ours = expected_files(components, files)
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
    """Returns one sha256, in hex, over a folder's config and the sha256 of each of its files.

    config: the content of config.json. files: file name -> a dict with "sha256". Of the config's
    "defaults" only `VIDEO_DEFAULTS` count, because the others change nothing about the weights; and
    `ORIGIN` does not count. Raises InputError if the config is nested too deeply.
    """
    config = {name: value for name, value in config.items() if name != ORIGIN}
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
    """Returns the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def difference(shapes: Shapes, expected: Shapes, limit: int | None = None) -> str:
    """Lists missing, extra and misshapen tensors of `shapes` in one line; "" if there are none.

    expected: the names and shapes that there should be. limit: how many tensors of each of the
    three kinds are named; None, the default, names all.
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
