"""Masks of edits, outside of which a frame keeps its pixels unchanged."""

from __future__ import annotations

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.frame_editors.oklab import from_rgb
from anyv2v.frame_editors.regions import blur, dilate, erode, remove_specks
from anyv2v.media.mask import read_mask

RIM = 1 / 80
"""Width of the rim inside a mask in which the edit fades in, as a fraction of the shorter side."""


def as_mask(source, shape: tuple[int, int]) -> np.ndarray:
    """Reads a mask and resizes it to a frame of `shape` (h, w): float32 (h, w), 0 to 1.

    source: a path, a PIL image or an array, see `read_mask`. Raises InputError if the mask's aspect
    ratio differs from the frame's by more than 1 %, or if `read_mask` refuses it.
    """
    mask = read_mask(source)
    (mask_height, mask_width), (height, width) = mask.shape, shape
    if mask.shape != shape:
        if abs(mask_width / mask_height / (width / height) - 1) > 0.01:
            raise InputError(
                f"mask: {mask_width}x{mask_height} is not of the frame's proportions, "
                f"{width}x{height}"
            )
        image = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
        mask = np.asarray(image)
    return mask


def blend(frame: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blends the edited frame into the original within a mask: uint8 (h, w, 3).

    frame, edited: uint8 RGB (h, w, 3). mask: (h, w), the weight of the edit, 0 to 1, which fades in
    over RIM of the shorter side within the mask. Where it is 0, pixels are exactly those of
    `frame`.
    """
    steps = round(min(mask.shape) * RIM)
    weight, eroded = mask.astype(np.float64), mask
    for _ in range(steps):
        eroded = erode(eroded, 1)
        weight = weight + eroded
    weight = (weight / (steps + 1))[..., None]
    return np.rint(frame + weight * (edited.astype(np.float64) - frame)).astype(np.uint8)


def detect_changes(frame: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Estimates which pixels an editor meant to change: a mask, float32 (h, w) of 0 and 1.

    frame, edited: uint8 RGB (h, w, 3). Editors change every pixel a little, so a change counts as
    meant if it exceeds four times the lower quartile of all changes. This threshold, a distance in
    OKLab, is clamped to 0.02 (barely visible) to 0.06 (clearly visible). The mask is then cleared
    of small specks and grown a little.
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
