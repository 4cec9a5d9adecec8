"""The argument VIDEO and the options of reading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyv2v import checks, loading
from anyv2v.errors import InputError
from anyv2v.media import container
from anyv2v.media.frames import Video
from anyv2v.media.proportions import Size, size_of_short_side
from anyv2v.media.video import read_first_frame, read_video
from anyv2v.pipeline.source import SUFFIX, Source


def is_source(path: str) -> bool:
    """Whether a path is one of a source (`anyv2v invert` writes them), by its suffix."""
    return Path(path).suffix.lower() == SUFFIX


def size_of(picture: np.ndarray) -> Size:
    """(width, height) of a picture (h, w, 3)."""
    return picture.shape[1], picture.shape[0]


@dataclass(frozen=True)
class Clip:
    """A video, a picture or a source, and how it is read.

    None stands for the value that the weights work best with. `size` is (width, height) or the
    length of the shorter side in pixels, `sample_fps` in frames per second, `start_time` in
    seconds.
    """

    video: str
    weights: str = loading.DEMO
    size: Size | int | None = None
    frames: int | None = None
    sample_fps: float | None = None
    start_time: float | None = None
    fit: str | None = None

    @property
    def is_source(self) -> bool:
        """Whether it is inverted already."""
        return is_source(self.video)

    @property
    def is_still(self) -> bool:
        """Whether it is one picture (or no video that can be read, which reading it will say)."""
        try:
            return not container.is_video(self.video)
        except InputError:
            return True

    def read(self) -> Video:
        """The frames that are edited, as the options and the weights have them."""
        if self.is_source:
            return Source.load(self.video).video
        own = loading.peek(self.weights).defaults
        if self.frames == 1:
            raise InputError("--frames 1: 1 frame is no video; at least 2 are needed")
        return read_video(
            self.video,
            size=self.sizes()[1],
            frames=self.frames or own.frames,
            fps=self.sample_fps or own.fps,
            start_time=self.start_time or 0.0,
            fit=self.fit or "crop",
        )

    def first_frame(self) -> np.ndarray:
        """The first frame at its own size, uint8 (h, w, 3)."""
        if self.is_source:
            return Source.load(self.video).video.frames[0]
        return read_first_frame(self.video, self.start_time or 0.0)

    def sizes(self) -> tuple[Size, Size]:
        """(width, height) of the file's pictures, and of the frames that are made of them."""
        if self.is_source:
            size = Source.frame_size(self.video)
            return size, size
        known, facts = loading.peek(self.weights), container.facts(self.video)
        own = facts.width, facts.height
        return own, self.target(own, known.defaults.size, known.multiple)

    def target(self, own: Size, default: Size, multiple: int) -> Size:
        """What `--size` makes of pictures of the size `own`; both sides are multiples."""
        if isinstance(self.size, int):
            return size_of_short_side(self.size, own, multiple)
        return checks.size(self.size or default, multiple)
