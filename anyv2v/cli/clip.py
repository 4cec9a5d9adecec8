"""The argument VIDEO of most commands, and the options that say how it is read."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v import checks, loading
from anyv2v.cli.values import ALL, SOURCE
from anyv2v.errors import InputError
from anyv2v.long.windows import Window, plan_windows
from anyv2v.media import container
from anyv2v.media.frames import Video
from anyv2v.media.proportions import Size, size_of_short_side
from anyv2v.media.video import read_first_frame, read_video
from anyv2v.pipeline.source import SUFFIX, Source
from anyv2v.weights.packaged import DEMO


def is_source(path: str) -> bool:
    """Whether a path has the suffix of a source, an inverted video that `anyv2v invert` wrote."""
    return Path(path).suffix.lower() == SUFFIX


def size_of(picture: np.ndarray) -> Size:
    """Returns (width, height) of a picture, which is an array (h, w, 3)."""
    return picture.shape[1], picture.shape[0]


def windows_of(args: Namespace, frames: int, keyframes: Iterable[int] = ()) -> list[Window]:
    """Returns the windows in which a command takes a clip of so many frames; see `plan_windows`."""
    group = loading.peek(args.weights).frames_per_latent
    window, shared = getattr(args, "window", 0), getattr(args, "shared", None)
    if args.frames == frames <= window:
        checks.grouped("frames", frames, group)
    return plan_windows(frames, window, shared, keyframes, group)


@dataclass(frozen=True)
class Clip:
    """VIDEO (a video, a picture or a source, which is an inverted video), and how it is read.

    Fields have the names of options. None means that the option was not given: size, frames and
    sample_fps are then those that the weights work best with.
    """

    video: str
    """Path of the video, picture or source."""
    weights: str = DEMO
    """Folder of the weights, "demo" or "flow"."""
    size: Size | int | None = None
    """(width, height), or the length of the shorter side, in pixels."""
    frames: int | str | None = None
    """Number of frames to read, or "all"."""
    sample_fps: float | str | None = None
    """Frames to read per second of the video, or "source": each of its frames."""
    start_time: float | None = None
    """Time of the first frame to read, in seconds; None is 0."""
    fit: str | None = None
    """How frames get to the size, one of `media.image.FITS`; None is "crop"."""
    out_size: str = "edited"
    """"source" if the output takes the form of VIDEO: then all of its frames are read, each, unless
    `frames` or `sample_fps` says otherwise."""

    @property
    def is_source(self) -> bool:
        """Whether VIDEO is a source, so that it need not be inverted."""
        return is_source(self.video)

    @property
    def is_still(self) -> bool:
        """Whether VIDEO is one picture; also True if it cannot be read, which `read` reports."""
        try:
            return not container.is_video(self.video)
        except InputError:
            return True

    def read(self) -> Video:
        """Returns the frames that are to be edited; those of a source are stored in it.

        Options that were not given have the weights' own values. Raises InputError if VIDEO cannot
        be read or has too few frames, or if a single frame is asked for.
        """
        if self.is_source:
            return Source.load_video(self.video)
        return read_video(self.video, **self.reading())

    def reading(self) -> dict[str, Any]:
        """Returns the arguments, besides the path, with which VIDEO is read; see `read_video`.

        Raises InputError as `read` does.
        """
        if self.frames == 1:
            raise InputError("--frames 1: 1 frame is no video; at least 2 are needed")
        own, whole = loading.peek(self.weights).defaults, self.out_size == SOURCE
        frames = self.frames or (ALL if whole else own.frames)
        fps = self.sample_fps or (SOURCE if whole else own.fps)
        return {
            "size": self.sizes()[1],
            "frames": None if frames == ALL else frames,
            "fps": None if fps == SOURCE else fps,
            "start_time": self.start_time or 0.0,
            "fit": self.fit or "crop",
        }

    def first_frame(self) -> np.ndarray:
        """Returns the frame at `start_time` (of a source the first), uint8 (h, w, 3), uncropped."""
        if self.is_source:
            return Source.load_video(self.video).frames[0]
        return read_first_frame(self.video, self.start_time or 0.0)

    def sizes(self) -> tuple[Size, Size]:
        """Returns (width, height) of the file's own frames, and that of the frames to be edited."""
        if self.is_source:
            size = Source.frame_size(self.video)
            return size, size
        known, facts = loading.peek(self.weights), container.facts(self.video)
        own = facts.width, facts.height
        return own, self.target(own, known.defaults.size, known.multiple)

    def target(self, own: Size, default: Size, multiple: int) -> Size:
        """Returns (width, height) to which the option `size` brings pictures of the size `own`.

        default: the size if the option was not given. Both sides must be multiples of `multiple`:
        raises InputError if they are not, but rounds if the option gives only the shorter side.
        """
        if isinstance(self.size, int):
            return size_of_short_side(self.size, own, multiple)
        return checks.size(self.size or default, multiple)
