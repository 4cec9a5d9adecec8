"""OKLab, a color space in which equal distances look about equally different.

The matrices are those of B. Ottosson, "A perceptual color space for image processing" (2020). Grays
have a = b = 0, and white has L = 1. If light gets k times as bright, L, a and b are multiplied by
k^(1/3), so shading moves a color along the line to black.
"""

from __future__ import annotations

import numpy as np

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_LMS, _FROM_LAB = np.linalg.inv(_LMS), np.linalg.inv(_LAB)


def from_rgb(picture: np.ndarray) -> np.ndarray:
    """Converts uint8 sRGB (..., 3) to OKLab, float64 (..., 3): L in 0..1, a and b in -0.4..0.4."""
    linear = _LINEAR[np.asarray(picture)]
    return np.cbrt(linear @ _LMS.T) @ _LAB.T


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """Converts OKLab (..., 3) to uint8 sRGB (..., 3).

    L is clipped to 0..1. Colors outside sRGB's gamut then get the largest chroma (a and b, scaled
    together) that lies within it, at the same lightness and hue.
    """
    lab = np.array(lab, dtype=np.float64)
    lab[..., 0] = lab[..., 0].clip(0, 1)
    outside = ~_in_gamut(_to_linear(lab))
    if outside.any():
        colors = lab[outside]
        # bisection for the largest factor of a and b that is in gamut
        low, high = np.zeros(len(colors)), np.ones(len(colors))
        for _ in range(12):
            middle = (low + high) / 2
            scale = np.stack([np.ones_like(middle), middle, middle], -1)
            fits = _in_gamut(_to_linear(colors * scale))
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        lab[outside, 1:] *= low[:, None]
    linear = _to_linear(lab).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def _to_linear(lab: np.ndarray) -> np.ndarray:
    return (lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T


def _in_gamut(linear: np.ndarray) -> np.ndarray:
    return np.all((linear >= -1e-4) & (linear <= 1 + 1e-4), axis=-1)


def _linear_levels() -> np.ndarray:
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


_LINEAR = _linear_levels()
