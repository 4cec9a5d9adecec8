"""`Video`, the frames of a video in memory, and `Frames`, those of any, in memory or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.image import as_frames


@runtime_checkable
class Frames(Protocol):
    """The frames of a clip, in memory or on disk, of which some are read at a time."""

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    def __len__(self) -> int:
        """The number of frames."""
        ...

    def frames_at(self, indices: Sequence[int]) -> np.ndarray:
        """Returns the frames with these numbers in this order, uint8 RGB (n, h, w, 3)."""
        ...


# eq=False: arrays have no single truth value to compare by
@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video in memory. The array is copied; InputError is raised for values that do not fit."""

    frames: np.ndarray
    """At least one frame, uint8 RGB (f, h, w, 3)."""
    fps: float
    """Frames per second, above 0."""

    def __post_init__(self):
        frames = _frames(self.frames)
        # otherwise they share memory with the argument
        own = frames is not self.frames and frames.base is None
        self._take(frames if own else frames.copy(), self.fps)

    @classmethod
    def owning(cls, frames: np.ndarray, fps: float) -> Video:
        """Makes a Video that shares memory with `frames`, instead of a copy.

        The caller must not use the array afterwards. Otherwise as the constructor.
        """
        video = object.__new__(cls)
        video._take(_frames(frames), fps)
        return video

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.frames)

    def frames_at(self, indices: Sequence[int]) -> np.ndarray:
        """Returns a copy of the frames with these numbers, uint8 RGB (n, h, w, 3)."""
        return self.frames[list(indices)]

    def __repr__(self) -> str:
        return f"Video({describe_clip(self.frames, self.fps)})"

    def _take(self, frames: np.ndarray, fps: float) -> None:
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "fps", checks.positive("fps", fps))


def describe_clip(frames: np.ndarray, fps: float) -> str:
    """Describes frames (f, h, w, 3) for messages, such as "16 frames of 512x512, 8 fps"."""
    count, height, width, _ = frames.shape
    noun = "frame" if count == 1 else "frames"
    return f"{count} {noun} of {width}x{height}, {fps:g} fps"


def _frames(frames: np.ndarray) -> np.ndarray:
    try:
        return as_frames(frames)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"frames: {checks.shown(frames)} is no array: {error}") from error
