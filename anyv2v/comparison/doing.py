"""Makes what a comparison needs besides edits of ours: first frames, baselines, other tools."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anyv2v.batch.run import Made
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.comparison.baselines import BASELINES
from anyv2v.comparison.cells import FRAME_EDIT
from anyv2v.errors import InputError
from anyv2v.frame_editors.command import filled, run_command
from anyv2v.frame_editors.registry import make
from anyv2v.frame_editors.run import edit_frame
from anyv2v.media.frames import Video
from anyv2v.media.image import read_image
from anyv2v.media.sequence import numbered
from anyv2v.media.video import read_video, write_video
from anyv2v.runtime.atomic_files import atomic_path, scratch

FILES = ("frame", "reference", "mask")
"""Settings that name files, which count by their contents."""
RATE = 8.0
"""Frames per second for those who write pictures, which have none."""
KEY = "key"
"""Name, in the file beside an output, of the hash of all that the output depends on."""


class Others:
    """Makes first frames and the clips of baselines and tools; it is a `batch.run.Doer`.

    The settings of what it makes are those of `cells.frame_tasks` and `cells.method_tasks`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        explain: Callable[[Exception], str],
        timeout: float = 3600.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        """folder: that of the comparison. explain: returns what went wrong in one line.

        timeout: seconds that a tool may take for a clip. device, dtype: those of frame editors.
        """
        self._folder, self._explain, self._timeout = Path(folder), explain, timeout
        self._setup = {"device": device, "dtype": dtype}

    def key(self, task: Task, edit: TaskEdit) -> str:
        """See `Doer.key`; settings and contents of files count, and paths do not."""
        facts = {name: value for name, value in edit.settings.items() if name not in FILES}
        files = {name: path for name in FILES if (path := edit.settings.get(name))}
        hashes = {name: _hash(Path(path)) for name, path in files.items()}
        facts |= {"command": edit.command, "files": hashes, "clip": _hash(Path(task.video))}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def is_done(self, edit: TaskEdit, key: str) -> bool:
        """See `Doer.is_done`."""
        try:
            made = json.loads(self._beside(edit).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(made, dict) and made.get(KEY) == key and self.is_there(edit)

    def is_there(self, edit: TaskEdit) -> bool:
        """See `Doer.is_there`."""
        pattern = numbered(self._folder / edit.output)
        if pattern is None:
            return (self._folder / edit.output).exists()
        return pattern.folder.is_dir() and bool(pattern.files())

    def order(self, task: Task) -> Sequence[int]:
        """See `Doer.order`."""
        return range(len(task.edits))

    def make(self, task: Task, index: int, force: bool, again: bool) -> Made:
        """See `Doer.make`; nothing here goes on where a killed run was."""
        edit = task.edits[index]
        output, key = self._folder / edit.output, self.key(task, edit)
        output.parent.mkdir(parents=True, exist_ok=True)
        if edit.command == FRAME_EDIT:
            text = self._edit_frame(task, edit.settings, output)
        else:
            text = self._carry(task, edit.settings, output)
        # the output first: what has no such file beside it is not done
        with atomic_path(self._beside(edit)) as temporary:
            facts = {"command": edit.command, "settings": dict(edit.settings), KEY: key}
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return Made(text)

    def free(self) -> None:
        """See `Doer.free`."""

    def explain(self, error: Exception) -> str:
        """See `Doer.explain`."""
        return self._explain(error)

    def _edit_frame(self, task: Task, settings: Mapping[str, Any], output: Path) -> str:
        clip = read_video(task.video, frames=1)
        picture = edit_frame(
            clip.frames[0],
            make(settings["editor"], settings["options"], **self._setup),
            settings["instruction"],
            settings["reference"],
            settings["mask"],
            seed=settings["seed"],
        )
        with atomic_path(output) as temporary:
            Image.fromarray(picture).save(temporary)
        return f"first frame by {settings['editor']}"

    def _carry(self, task: Task, settings: Mapping[str, Any], output: Path) -> str:
        clip = read_video(task.video).frames
        if name := settings.get("baseline"):
            carry = BASELINES[name]
            carry.check()
            frames = carry.make(clip, read_image(settings["frame"]))
        else:
            video = Video.owning(clip, settings["fps"])
            frames = self._by_tool(settings, Path(task.video), video, output.parent)
        write_video(output, frames, RATE)
        return name or "by another tool"

    def _by_tool(
        self, settings: Mapping[str, Any], clip: Path, video: Video, folder: Path
    ) -> np.ndarray:
        with scratch(folder) as parent:
            written, pictures = parent / "output.mp4", parent / "frames"
            pictures.mkdir()
            values = {name: settings[name] or "" for name in ("prompt", "instruction", "mask")}
            values |= {"frame": settings["frame"], "frames": str(clip), "seed": settings["seed"]}
            values |= {"fps": f"{video.fps:g}", "video": str(parent / "video.mp4")}
            values |= {"output": str(written), "output_frames": str(pictures)}
            if "{mask}" in settings["tool"] and not settings["mask"]:
                raise InputError("the tool's command has {mask}, but the edit has no mask.png")
            if "{video}" in settings["tool"]:
                write_video(values["video"], video.frames, video.fps)
            words = filled(settings["tool"], {name: str(value) for name, value in values.items()})
            longer = "; --tool-timeout gives it longer"
            run_command(words, parent / "log", self._timeout, "tool", longer)
            return _read_back(words[0], written, pictures, video.frames.shape)

    def _beside(self, edit: TaskEdit) -> Path:
        output = self._folder / edit.output
        if numbered(output) is not None:
            return output.with_name("edit.json")
        return output.with_name(f"{output.name}.json")


def _read_back(tool: str, written: Path, pictures: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The clip that a tool has written, uint8 RGB of a shape (f, h, w, 3)."""
    places = [path for path in (written, pictures) if path.is_file() or any_in(path)]
    if len(places) != 1:
        raise InputError(
            f"the tool {tool} ended well but wrote {'both' if places else 'neither'} {{output}} "
            f"{'and' if places else 'nor'} pictures in {{output_frames}}"
        )
    frames = read_video(places[0]).frames
    if frames.shape != shape:
        (f, h, w, _), (count, height, width, _) = frames.shape, shape
        raise InputError(
            f"the tool {tool} wrote {f} frames of {w}x{h}; the clip has {count} of {width}x{height}"
        )
    return frames


def any_in(folder: Path) -> bool:
    """Whether a path is a folder that is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def _hash(path: Path) -> str:
    """SHA-256 of a file or, for a folder, of the names and contents of its files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(os.fsencode(file.name) + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()
