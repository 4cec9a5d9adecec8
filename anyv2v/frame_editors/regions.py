"""Regions of a picture: growing, cleaning and labeling masks. All arrays are (h, w).

Beyond its rim a picture is continued by the pixels at the rim.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TOUCHING = np.ones((3, 3))
"""The neighbors of a pixel: those that share an edge or a corner with it."""


def erode(values: np.ndarray, radius: int) -> np.ndarray:
    """The least value within `radius` pixels along each axis, in the dtype of `values`."""
    return ndimage.minimum_filter(values, 2 * radius + 1, mode="nearest")


def dilate(values: np.ndarray, radius: int) -> np.ndarray:
    """The greatest value within `radius` pixels along each axis, in the dtype of `values`."""
    return ndimage.maximum_filter(values, 2 * radius + 1, mode="nearest")


def blur(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean within `radius` pixels along each axis, float64."""
    return ndimage.uniform_filter(values, 2 * radius + 1, output=np.float64, mode="nearest")


def label_regions(mask: np.ndarray) -> np.ndarray:
    """The number 1, 2, ... of each connected region of a mask of bool; 0 outside the mask."""
    # scipy has no type hints, and a number alone is inferred
    return ndimage.label(mask, TOUCHING)[0]  # pyright: ignore[reportIndexIssue]


def remove_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """A mask of bool without the regions, and then the holes, of fewer than `least` pixels."""
    for inverted in (False, True):
        labels = label_regions(mask ^ inverted)
        small = np.bincount(labels.ravel()) < least
        small[0] = False
        mask = mask ^ small[labels]
    return mask
