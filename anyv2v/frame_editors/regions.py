"""Regions of a picture: growing, cleaning and labeling masks. All arrays are (h, w).

Beyond its border an array is continued by the values at the border.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TOUCHING = np.ones((3, 3))
"""The neighbors of a pixel: those that share an edge or a corner with it."""


def erode(values: np.ndarray, radius: int) -> np.ndarray:
    """Replaces each value of (h, w) by the minimum within `radius` pixels along each axis.

    The window is a square with sides of 2 * radius + 1. The dtype stays.
    """
    return ndimage.minimum_filter(values, 2 * radius + 1, mode="nearest")


def dilate(values: np.ndarray, radius: int) -> np.ndarray:
    """Replaces each value of (h, w) by the maximum within `radius` pixels along each axis.

    The window is a square with sides of 2 * radius + 1. The dtype stays.
    """
    return ndimage.maximum_filter(values, 2 * radius + 1, mode="nearest")


def blur(values: np.ndarray, radius: int) -> np.ndarray:
    """Replaces each value of (h, w) by the mean within `radius` pixels along each axis, float64.

    The window is a square with sides of 2 * radius + 1.
    """
    return ndimage.uniform_filter(values, 2 * radius + 1, output=np.float64, mode="nearest")


def label_regions(mask: np.ndarray) -> np.ndarray:
    """Numbers the connected regions of a bool mask (h, w) as 1, 2, ...: integers (h, w).

    Pixels outside the mask are 0. Pixels that share an edge or a corner are connected.
    """
    # scipy has no type hints, and a number alone is inferred
    return ndimage.label(mask, TOUCHING)[0]  # pyright: ignore[reportIndexIssue]


def remove_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """Removes from a bool mask (h, w) the regions, and then the holes, below `least` pixels."""
    for inverted in (False, True):
        labels = label_regions(mask ^ inverted)
        small = np.bincount(labels.ravel()) < least
        small[0] = False
        mask = mask ^ small[labels]
    return mask
