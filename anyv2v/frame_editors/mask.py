"""Where an edit may show: outside a mask the frame stays as it was, to the bit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.frame_editors.oklab import from_rgb
from anyv2v.frame_editors.regions import blur, dilate, erode, remove_specks
from anyv2v.media.mask import read_mask

RIM = 1 / 80
"""Of the shorter side: how far within the mask the edit fades in."""


def as_mask(source, shape: tuple[int, int]) -> np.ndarray:
    """A mask (see `read_mask`) as float32 (h, w) of `shape`.

    It is stretched to the frame if the proportions are its own to a hundredth. InputError: other
    proportions, or it selects nothing or everything.
    """
    mask = read_mask(source)
    given, (height, width) = mask.shape, shape
    if given != shape:
        if abs(given[1] / given[0] / (width / height) - 1) > 0.01:
            raise InputError(
                f"mask: {given[1]}x{given[0]} is not of the frame's proportions, {width}x{height}"
            )
        image = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
        mask = np.asarray(image)
    return mask


def blend(frame: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The edit within the mask, fading in from its rim inwards; uint8 (h, w, 3).

    Where the mask is 0 the frame's own bytes come back.
    """
    steps = round(min(mask.shape) * RIM)
    weight, eroded = mask.astype(np.float64), mask
    for _ in range(steps):
        eroded = erode(eroded, 1)
        weight = weight + eroded
    weight = (weight / (steps + 1))[..., None]
    return np.rint(frame + weight * (edited.astype(np.float64) - frame)).astype(np.uint8)


def changed(frame: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """float32 (h, w), 0 or 1: what an editor meant to change, from what it did.

    Editors change every pixel a little. What differs by four times as much as the quieter quarter
    of the picture is meant, if it can be seen at all; clear differences are always.
    """
    side = min(frame.shape[:2])
    difference = np.linalg.norm(from_rgb(edited) - from_rgb(frame), axis=-1)
    difference = blur(difference, max(1, side // 200))
    threshold = np.clip(4 * np.quantile(difference, 0.25), 0.02, 0.06)
    mask = difference > threshold
    mask = dilate(mask, side // 100)
    mask = remove_specks(mask, mask.size / 1000)
    # the rim of the blend lies within the mask
    return dilate(mask, round(side * RIM)).astype(np.float32)
