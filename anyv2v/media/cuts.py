"""Finding where one scene of a clip is cut to another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

# side of the grey thumbnails that are compared
SIDE = 32
# frames before and after a cut that must all differ, so that a flash of fewer is none
LASTS = 3
# frames on each side that tell how much the clip moves
AROUND = 8
# least difference of the pictures, 1 - correlation: the published demo clips have up to 0.12 from
# one frame to the next at 8 fps, and from 0.63 on between each other
DIFFERENCE = 0.35
# least mean difference in levels of 255; noise in the dark has less
LEVELS = 10
# and both must be so many times the usual difference around the cut
TIMES = 2.5
# standard deviation of what is no picture, in levels
NOISE = 2


def find_cuts(frames: Iterable[np.ndarray]) -> list[int]:
    """Returns the indices of the frames with which a new scene begins, the first frame left out.

    frames: uint8 RGB (h, w, 3), taken one after another; 1 kB of each is kept.

    A cut is where thumbnails of the three frames before and of the three after differ in every
    pair: in correlation, which fades and exposure do not change, and in levels, both by 2.5 times
    the median difference of neighbors within eight frames on either side. So fast motion, flashes
    of up to two frames, and fades and dissolves of six frames and more are no cuts; nor are scenes
    of fewer than three frames found.
    """
    small = [_thumbnail(frame) for frame in frames]
    steps = np.array([_difference(a, b) for a, b in zip(small, small[1:], strict=False)])
    cuts: list[int] = []
    for index in range(1, len(small)):
        # each side by itself, because one of them may be still
        usual = np.maximum(
            _median(steps[max(0, index - 1 - AROUND) : index - 1]),
            _median(steps[index : index + AROUND]),
        )
        least = np.maximum((DIFFERENCE, LEVELS), TIMES * usual)
        # most frames end here
        if (steps[index - 1] < least).any():
            continue
        pairs = [
            _difference(a, b)
            for a in small[max(0, index - LASTS) : index]
            for b in small[index : index + LASTS]
        ]
        if (np.min(pairs, axis=0) >= least).all():
            cuts.append(index)
    return cuts


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.convert("L"))


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """1 - correlation, 0 to 2, and the mean absolute difference in levels."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    levels = float(np.abs(a - b).mean())
    a, b = a - a.mean(), b - b.mean()
    # so that what is flat but for noise is like itself
    noise = a.size * NOISE**2
    together = float((a * b).sum()) + noise
    alone = float(np.sqrt(((a * a).sum() + noise) * ((b * b).sum() + noise)))
    return 1 - together / alone, levels


def _median(steps: np.ndarray) -> np.ndarray:
    return np.median(steps, axis=0) if len(steps) else np.zeros(2)
