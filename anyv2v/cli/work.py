"""The folder in which an edit keeps the frames of a long clip and the windows that are done."""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from anyv2v.cli import notices
from anyv2v.cli.clip import Clip
from anyv2v.cli.console import tell
from anyv2v.cli.values import SOURCE
from anyv2v.errors import InputError
from anyv2v.long.work_folder import RECORD
from anyv2v.media.frames import Frames
from anyv2v.media.on_disk import FramesOnDisk

CLIP = "clip.frames"
"""Name of the file with the frames of the clip."""
WINDOWS = "window-*"
"""Pattern of the names of files with what is done of windows."""
OURS = (CLIP, WINDOWS, "run.json", ".anyv2v-*")
"""Patterns of the names of all that an edit keeps in its folder."""


@dataclass(frozen=True)
class Work:
    """The folder OUT.unfinished beside an output; it is made when something is kept in it.

    As a context manager it removes the folder at the end, unless an exception ends the block and
    windows are there from which --resume can go on.
    """

    path: Path
    """The path of the folder."""

    @classmethod
    def begin(cls, args: argparse.Namespace) -> Work:
        """Names the folder of the first `-o`, which `clear` clears.

        Raises InputError if there is something of that name that no edit has made.
        """
        work = cls(Path(f"{args.output[0]}.unfinished"))
        there = os.path.lexists(work.path)
        if there:
            if not work.path.is_dir() or any(map(_is_foreign, os.listdir(work.path))):
                raise InputError(f"{work.path} is no folder of an unfinished edit; remove it")
        return work

    def clear(self, resume: bool) -> None:
        """Removes what is done of another edit, unless it goes on; for when all input is read."""
        tell([notices.beginning_again(str(self.path), self._begun, resume, "edit")])
        if not resume:
            for pattern in (WINDOWS, "run.json"):
                for file in self.path.glob(pattern):
                    file.unlink()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None or not self._begun:
            self.remove()

    @property
    def _begun(self) -> bool:
        return any(self.path.glob(WINDOWS))

    @property
    def is_prepared(self) -> bool:
        """Whether the frames of the clip are there, and windows are being run."""
        return (self.path / CLIP).exists() and (self.path / RECORD).exists()

    def frames(self, clip: Clip, window: int) -> Frames:
        """Returns the frames of VIDEO that are edited: in memory, or in a file if they are many.

        window: the most frames of one window; 0 for all. Raises InputError as `Clip.read` does.
        """
        if clip.is_source:
            return clip.read()
        reading = clip.reading()
        most = reading["frames"]
        one_window = window == 0 or (most is not None and most <= window)
        if one_window and clip.out_size != SOURCE:
            return clip.read()
        self.make()
        return FramesOnDisk.read(self.path / CLIP, clip.video, **reading)

    def make(self) -> None:
        """Makes the folder if it is not there; raises InputError if it cannot be made."""
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error

    def remove(self) -> None:
        """Removes the folder with all that is in it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)


def _is_foreign(name: str) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in OURS)
