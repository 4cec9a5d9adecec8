"""A video in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.image import as_frames


# eq=False: arrays have no single truth value to compare by
@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Frames, uint8 RGB (f, h, w, 3), at least one, shown `fps` per second.

    It has a copy of the array that it is made of.
    """

    frames: np.ndarray
    fps: float

    def __post_init__(self):
        frames = _frames(self.frames)
        # else they are a view of what was given
        own = frames is not self.frames and frames.base is None
        self._take(frames if own else frames.copy(), self.fps)

    @classmethod
    def owning(cls, frames: np.ndarray, fps: float) -> Video:
        """Of an array that nobody else has: it is not copied."""
        video = object.__new__(cls)
        video._take(_frames(frames), fps)
        return video

    def __repr__(self) -> str:
        return f"Video({clip(self.frames, self.fps)})"

    def _take(self, frames: np.ndarray, fps: float) -> None:
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "fps", checks.positive("fps", fps))


def clip(frames: np.ndarray, fps: float) -> str:
    """What frames (f, h, w, 3) are, in a few words."""
    count, height, width, _ = frames.shape
    what = "frame" if count == 1 else "frames"
    return f"{count} {what} of {width}x{height}, {fps:g} fps"


def _frames(given: np.ndarray) -> np.ndarray:
    try:
        return as_frames(given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"frames: {checks.shown(given)} is no array: {error}") from error
