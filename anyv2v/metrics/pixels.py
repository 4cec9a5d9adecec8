"""Metrics of pixels: likeness to another clip, in all of the picture or in a part, and flicker.

Clips are uint8 RGB (f, h, w, 3), both of one shape. A region is bool (f, h, w), True where pixels
count. PSNR of whole clips is `anyv2v.media.psnr.psnr`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anyv2v.media.psnr import psnr

WINDOW, SIGMA = 11, 1.5
"""Side in pixels, and standard deviation, of the Gaussian window of SSIM."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""The constants of SSIM for levels of 0 to 255."""
REACH = 2
"""How many pixels around a changed pixel `unchanged` takes for changed too."""


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean structural similarity (Wang et al. 2004) of two clips; 1 if they are equal.

    The Gaussian window has 11x11 pixels and a standard deviation of 1.5; the mean is over all
    colors, frames and positions where the window lies inside the picture.
    """
    return float(np.mean([ssim_map(x, y).mean() for x, y in zip(a, b, strict=True)]))


def ssim_where(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> float | None:
    """Returns the mean of `ssim` over the positions where all of the window lies in the region.

    So no pixel outside the region has an influence. Returns None if there is no such position.
    """
    total, count = 0.0, 0
    for x, y, where in zip(a, b, region, strict=True):
        whole = np.asarray(ndimage.minimum_filter(where, WINDOW), bool)
        whole = whole[_INSIDE, _INSIDE]
        if whole.any():
            total += float(ssim_map(x, y)[whole].sum())
            count += 3 * int(whole.sum())
    return total / count if count else None


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the structural similarity of two frames at each position of the window.

    a, b: uint8 (h, w, 3), at least 11x11. The result is float64 (h - 10, w - 10, 3), for each color
    on its own. Variances are those of the weighted window, without a correction for its size.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    mx, my = _mean(x), _mean(y)
    vx, vy, vxy = _mean(x * x) - mx * mx, _mean(y * y) - my * my, _mean(x * y) - mx * my
    return (2 * mx * my + C1) * (2 * vxy + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))


_INSIDE = slice(WINDOW // 2, -(WINDOW // 2))


def _mean(values: np.ndarray) -> np.ndarray:
    """The weighted means of (h, w, 3) over the window where it lies inside the picture."""
    line = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    line /= line.sum()
    for axis in (0, 1):
        values = ndimage.correlate1d(values, line, axis=axis)
    return values[_INSIDE, _INSIDE]


def psnr_where(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> float | None:
    """Returns the PSNR of two clips over the pixels of a region, in dB; 100 if they are equal.

    Returns None if the region is empty.
    """
    return psnr(a[region], b[region]) if region.any() else None


def unchanged(source: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the region that a known true edit leaves alone: bool (f, h, w).

    source, truth: the clips before and after the edit as it should be. Pixels count that are equal
    in both, and at least three pixels away from those that are not.
    """
    changed = (source != truth).any(-1)
    side = 2 * REACH + 1
    return np.logical_not(ndimage.binary_dilation(changed, np.ones((1, side, side))))


def flicker(clip: np.ndarray, reference: np.ndarray) -> float:
    """Returns how much more or less a clip changes from frame to frame than a reference does.

    It is the root mean square, over all pixels and colors, of the difference of the two clips'
    differences between consecutive frames, in levels of 0 to 255. A clip that differs from the
    reference by the same picture in every frame has no flicker.
    """
    total = 0.0
    for i in range(len(clip) - 1):
        before, after = (clip[k].astype(np.float64) - reference[k] for k in (i, i + 1))
        total += float(np.mean((after - before) ** 2))
    return float(np.sqrt(total / (len(clip) - 1)))
