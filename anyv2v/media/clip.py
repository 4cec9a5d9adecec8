"""A video in memory."""

import math
from dataclasses import dataclass

import numpy as np

from anyv2v.errors import InputError
from anyv2v.media.image import as_frames


# eq=False: arrays have no single truth value to compare by
@dataclass(frozen=True, eq=False)
class Video:
    """Frames, uint8 RGB (f, h, w, 3), at least one, shown `fps` per second."""

    frames: np.ndarray
    fps: float

    def __post_init__(self):
        object.__setattr__(self, "frames", as_frames(self.frames))
        object.__setattr__(self, "fps", positive("fps", self.fps))


def positive(name: str, value: float) -> float:
    """`value` as a float above 0, or an InputError that calls it `name`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} must be a number above 0, not {value!r}")
    return number
