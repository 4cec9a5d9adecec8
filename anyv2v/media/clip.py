"""A video in memory."""

from dataclasses import dataclass

import numpy as np

from anyv2v import checks
from anyv2v.media.image import as_frames


# eq=False: arrays have no single truth value to compare by
@dataclass(frozen=True, eq=False)
class Video:
    """Frames, uint8 RGB (f, h, w, 3), at least one, shown `fps` per second."""

    frames: np.ndarray
    fps: float

    def __post_init__(self):
        object.__setattr__(self, "frames", as_frames(self.frames))
        object.__setattr__(self, "fps", checks.positive("fps", self.fps))
