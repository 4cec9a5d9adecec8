"""The sidecar of an output: a JSON file that says how the output was made.

Given as `--config`, it repeats the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip
from anyv2v.cli.config_file import COMMAND, SETTINGS
from anyv2v.cli.console import tell
from anyv2v.cli.edit_key import edit_key
from anyv2v.cli.values import AUTO, OFF, SOURCE
from anyv2v.convert.cache import pinned
from anyv2v.editor import Editor
from anyv2v.kernels.choose import USED
from anyv2v.media.sequence import Pattern, is_sequence, numbered
from anyv2v.pipeline.source import SUFFIX, Source
from anyv2v.runtime.atomic_files import atomic_path, check_output
from anyv2v.weights import hub
from anyv2v.weights.packaged import PACKAGED

PACKAGES = ("anyv2v", "torch", "triton", "numpy", "av", "pillow", "safetensors", "tokenizers")
"""Packages whose versions are recorded."""
INPUTS = ("video", "frame", "reference", "mask")
"""Options that name files on whose contents the output depends, besides the weights."""
WORDS = {"protect": (OFF, AUTO), "guide": (OFF, AUTO, "patches")}
"""Option that names a file unless it is one of these words -> the words."""
EACH = (*INPUTS, "prompt", "instruction", "output")
"""Options that each of several edits may have for itself."""
WEIGHTS = ("weights", "editor_weights")
"""Options that are folders of weights, or repositories of the hub."""
PATHS = (*INPUTS, "output", *WEIGHTS)
"""Options that are paths."""
KEYED = ("edit", "reconstruct")
"""Commands whose outputs have a key, because a batch may make them."""
PRIVATE = ("residuals", "versions", "environment")
"""Keys of a sidecar that the comment in a video file leaves out."""


def sidecar_of(output: str | os.PathLike) -> Path:
    """Returns the path of an output's sidecar: out.mp4.json for out.mp4.

    For a pattern such as frames/%05d.png it is edit.json in the same folder.
    """
    output = Path(output)
    if numbered(output) is not None:
        return output.with_name("edit.json")
    return output.with_name(f"{output.name}.json")


@dataclass(frozen=True)
class Inverted:
    """How a clip was inverted, as far as a sidecar tells it."""

    size: tuple[int, int]
    """(width, height) of the frames."""
    frames: int
    """Number of frames."""
    fps: float
    """Frames per second."""
    method: str
    """The method, a key of `METHODS`."""
    steps: int
    """Number of steps."""
    tolerance: float
    """The relative residual down to which a fixed point was iterated."""
    evaluations: int
    """Number of evaluations of the network."""
    residuals: Mapping[str, float] | None = None
    """Index of a step, 0 the noisiest -> its relative residual; None for a clip of several
    windows."""

    @classmethod
    def of(cls, source: Source) -> Inverted:
        """Returns what a sidecar tells of a source."""
        how, residuals = source.settings, {str(i): r for i, r in source.residuals.items()}
        count, height, width, _ = source.video.frames.shape
        made = (width, height), count, source.video.fps, how.method, how.steps, how.tolerance
        return cls(*made, source.evaluations, residuals)


class Provenance:
    """A record of how the outputs of one run are made.

    It is begun before the inputs are read, and hashes them then.
    """

    def __init__(self, args: argparse.Namespace):
        self._args = args
        USED.clear()
        given = {name: getattr(args, name, None) for name in INPUTS}
        given["keyframe"] = [x.partition(":")[2] for x in getattr(args, "keyframe", None) or []]
        for name in WORDS:
            value = getattr(args, name, None)
            given[name] = None if value in WORDS[name] else value
        self.inputs = {name: _fingerprints(value) for name, value in given.items() if value}
        """Option -> the `fingerprint` of its file, or a list with those of several."""

    @classmethod
    def begin(cls, args: argparse.Namespace) -> Provenance:
        """Begins the record of a run.

        Prints a line for each input that has changed since the sidecar given as --config was
        written.
        """
        provenance = cls(args)
        tell(provenance.changes())
        return provenance

    def changes(self) -> list[str]:
        """Returns a line for each input that differs from that in the sidecar given as --config."""
        made = read_sidecar(self._args.config) if self._args.config else {}
        said = []
        for name, before in made.get("inputs", {}).items():
            here = self.inputs.get(name)
            for old, new in zip(_listed(before), _listed(here), strict=False):
                if old["path"] == new["path"] and old["sha256"] != new["sha256"]:
                    said.append(f"{new['path']} has changed since {self._args.config} was written")
        return said

    def of(
        self,
        editor: Editor | None = None,
        inverted: Inverted | None = None,
        latents_sha256: str | None = None,
        index: int = 0,
        frame: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Returns the content of the sidecar of one output.

        editor, inverted: what the run used, None if nothing of the kind. latents_sha256: that of
        the output's latents, see the function. index: the place of the edit among several, from 0.
        frame: the edited first frame, uint8 (h, w, 3), if a frame editor made it. Paths are
        absolute, and options that were not given have the value that was used.
        """
        args, inputs = self._args, {n: _one(v, index) for n, v in self.inputs.items()}
        settings: dict[str, Any] = {COMMAND: args.command}
        for name in args.settable:
            value = getattr(args, name)
            settings[name] = _one(value, index) if name in EACH else value
        # the first run wrote it; a repetition needs no second copy
        settings["save_frame"] = None
        if editor is not None:
            if hasattr(args, "options"):
                options = dict(editor.backbone.options(args.options))
                settings |= {"fps": options.pop("fps", None)}
                settings |= {"option": [f"{k}={x}" for k, x in options.items()] or None}
            settings |= {"device": str(editor.backbone.device)}
            settings |= {"dtype": str(editor.backbone.dtype).removeprefix("torch.")}
        if inverted is not None and Path(args.video).suffix.lower() != SUFFIX:
            width, height = inverted.size
            settings |= {"size": f"{width}x{height}", "frames": inverted.frames}
            each = typed(Clip, args).reading()["fps"] is None
            settings |= {"sample_fps": SOURCE if each else inverted.fps}
            settings |= {"start_time": args.start_time or 0.0}
            settings |= {"method": inverted.method, "inversion_steps": inverted.steps}
            # ddim ignores a tolerance, and would warn of it
            tolerance = None if inverted.method == "ddim" else inverted.tolerance
            settings |= {"tolerance": tolerance}
        if frame is not None:
            inputs["frame"] = {"path": None, "sha256": hashlib.sha256(frame.tobytes()).hexdigest()}
        key = None
        if editor is not None and args.command in KEYED:
            key = edit_key(args, editor.fingerprint, self.inputs, index)
        return {
            SETTINGS: {name: plain(name, value) for name, value in settings.items()},
            "seed": settings.get("seed"),
            "weights": editor
            and {"path": plain("weights", args.weights), "fingerprint": editor.fingerprint},
            "inputs": inputs,
            "latents_sha256": latents_sha256,
            "versions": versions(),
            "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("ANYV2V_")},
            "evaluations": inverted and inverted.evaluations,
            "kernels": {op: sorted(names) for op, names in sorted(USED.items())},
            "residuals": inverted and inverted.residuals,
            "kept": None,
            "key": key,
        }


def read_sidecar(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of a sidecar; empty if the file is missing or is not a sidecar."""
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    parts = (made.get(SETTINGS), made.get("inputs")) if isinstance(made, dict) else ()
    return made if parts and all(isinstance(part, dict) for part in parts) else {}


def check_sidecar(output: str | os.PathLike, force: bool) -> None:
    """Raises InputError if no sidecar can be written for an output, as `check_output` does.

    force: overwrite an existing sidecar. One whose output no longer exists is always overwritten.
    """
    path = sidecar_of(output)
    if made := read_sidecar(path):
        # several patterns of one folder have but one
        of = path.with_name(os.path.basename(str(made[SETTINGS].get("output"))))
        force = force or not (is_there(output) or is_there(of))
    check_output(path, force)


@contextmanager
def with_sidecar(output: str | os.PathLike, facts: Mapping[str, Any]) -> Iterator[None]:
    """Writes the sidecar of an output after the block, which must write the output itself.

    facts: the content, which the block may complete. If the block raises, the sidecar of an earlier
    output stays, as that output does.
    """
    check_output(sidecar_of(output), force=True)  # the folder may have gone
    with atomic_path(sidecar_of(output)) as temporary:
        # before the output, which is not written if this cannot be
        _write_json(temporary, facts)
        yield
        _write_json(temporary, facts)


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    # a name may hold bytes that are no text
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def comment(facts: Mapping[str, Any]) -> str:
    """Returns `facts` as JSON in one line, without folders and machine, for a video file's comment.

    facts: the content of the video's sidecar.
    """
    short = {name: value for name, value in facts.items() if name not in PRIVATE}
    return json.dumps(_without_folders(short), ensure_ascii=False)


def fingerprint(path: str) -> dict[str, str | None]:
    """Returns {"path": absolute path, "sha256": hash of the content} for an input.

    For a folder, or a pattern of numbered pictures, the hash covers the names and contents of the
    files. It is None if there is nothing to hash.
    """
    whole, digest = Path(path).absolute(), hashlib.sha256()
    if whole.is_dir():
        files = sorted(p for p in whole.iterdir() if p.is_file())
    elif is_sequence(whole) and (pattern := Pattern.of(whole)) is not None:
        files = list(pattern.files().values())
    else:
        files = [whole]
    # anything else is read where it is refused
    if not files or not all(file.is_file() for file in files):
        return {"path": str(whole), "sha256": None}
    for file in files:
        if files != [whole]:
            digest.update(os.fsencode(file.name) + b"\0")
        with open(file, "rb") as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    return {"path": str(whole), "sha256": digest.hexdigest()}


def latents_sha256(parts: Callable[[], Iterable[Tensor]]) -> str:
    """Returns the SHA-256, in hexadecimal, of latents as little-endian float32 in C order.

    parts: returns the latents (1, c, f', h', w') divided along the frames, from the first on. It is
    called for each channel, so that latents that come from files need not fit into memory.
    """
    digest, channel, channels = hashlib.sha256(), 0, 1
    while channel < channels:
        for part in parts():
            channels = part.shape[1]
            values = part[:, channel].detach().float().cpu().contiguous().numpy()
            digest.update(values.astype("<f4").tobytes())
        channel += 1
    return digest.hexdigest()


def versions() -> dict[str, str | int]:
    """Returns the versions of Python and `PACKAGES`, the platform, the CPU threads, and the GPU.

    Packages that are not installed, and a GPU that was not used, are left out.
    """
    found: dict[str, str | int] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found |= {"platform": platform.platform(), "threads": torch.get_num_threads()}
    if torch.cuda.is_initialized():
        found["device"] = torch.cuda.get_device_name()
    return found


def is_there(output: str | os.PathLike) -> bool:
    """Whether a file is there or, for a pattern such as frames/%05d.png, any picture of it."""
    pattern = numbered(output)
    if pattern is None:
        return Path(output).exists()
    return pattern.folder.is_dir() and bool(pattern.files())


def _fingerprints(value: str | list[str]) -> Any:
    return [fingerprint(each) for each in value] if isinstance(value, list) else fingerprint(value)


def _one(value: Any, index: int) -> Any:
    """Of a list with one for each edit or one for all, that of the edit of this index."""
    return value[index if len(value) > 1 else 0] if isinstance(value, list) else value


def _listed(value: Any) -> list[dict]:
    return [each for each in (value if isinstance(value, list) else [value]) if each]


def plain(name: str, value: Any) -> Any:
    """Returns the value of an option as JSON has it and --config takes it; paths are absolute."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, Mapping):
        # one scale of guidance is a number, as most give it
        named = ",".join(f"{each}={number}" for each, number in value.items())
        return value["text"] if {*value} == {"text"} else named or None
    if name in WEIGHTS and isinstance(value, str) and hub.name_of(value) is not None:
        return pinned(value)
    if name in PATHS and isinstance(value, str) and value not in PACKAGED:
        return os.path.abspath(value)
    if name in WORDS and value is not None and value not in WORDS[name]:
        return os.path.abspath(value)
    if name == "keyframe" and value:
        parts = (each.partition(":") for each in value)
        return [f"{index}:{os.path.abspath(path)}" for index, _, path in parts]
    if name == "editor_option" and value:
        parts = (each.partition("=") for each in value)
        return [f"{option}={_there(given)}" for option, _, given in parts]
    if name == "editor_command" and value:
        first, *others = shlex.split(value)
        # a shell looks for one without a folder elsewhere than here
        first = _there(first) if os.path.dirname(first) else first
        return shlex.join([first, *map(_there, others)])
    return value


def _there(value: str) -> str:
    """The whole path of a file or folder that is here; any other text as it is."""
    return os.path.abspath(value) if os.path.exists(value) else value


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v) for v in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value)
    return value
