"""Masks that a user gives for a clip: arrays, pictures and clips, white where it may change."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.mask import CLOSE, fit_mask, read_mask

Mask = str | os.PathLike | np.ndarray | Image.Image
"""What is accepted as a mask besides "auto": a path of a picture or clip, a picture, an array."""


def masks_of(mask: Mask, size: tuple[int, int], frames: int, fit: str = "crop") -> np.ndarray:
    """Reads the mask that a user gives for a clip: float32 (h, w) or (f, h, w), 0 to 1.

    mask: an array (h, w), or (f, h, w) with one mask for each frame; a PIL image; or the path of a
    picture or a clip. What the values mean is inferred as by `read_mask`; for a clip, from all
    frames together. size: (width, height) of the clip, which arrays must have. frames: how many
    frames it has; a clip of masks must have at least as many. fit: how pictures and clips are
    fitted to the size, see `fit_frame`.

    Raises InputError for anything else and for a mask that selects nothing or everything.
    """
    if isinstance(mask, np.ndarray):
        return _of_array(mask, size, frames)
    if isinstance(mask, Image.Image):
        return fit_mask(mask, size, fit)
    from anyv2v.media.container import is_video
    from anyv2v.media.video import read_video

    path = checks.path("mask", mask)
    if not is_video(path):
        return fit_mask(path, size, fit)
    clip = read_video(path, size, frames, fit=fit).frames
    # lossy files make black and white a little gray
    clip = np.where(clip <= CLOSE, np.uint8(0), np.where(clip >= 255 - CLOSE, np.uint8(255), clip))
    return _together(clip)


def _of_array(mask: np.ndarray, size: tuple[int, int], frames: int) -> np.ndarray:
    shape = size[::-1]
    if mask.shape not in (shape, (frames, *shape)):
        raise InputError(f"mask: {mask.shape} is neither {shape} nor {(frames, *shape)}")
    return read_mask(mask) if mask.ndim == 2 else _together(mask)


def _together(masks: np.ndarray) -> np.ndarray:
    """Reads masks (f, h, w) or (f, h, w, 3) as one tall mask; single frames may be all black."""
    f, h, w = masks.shape[:3]
    return read_mask(masks.reshape(f * h, *masks.shape[2:])).reshape(f, h, w)
