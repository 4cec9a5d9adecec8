"""Reads masks, as people draw them or tools write them, as values of 0 to 1."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media import picture
from anyv2v.media.image import fit_frame

CLOSE = 16
"""Largest difference, in levels of 255, between the channels of a pixel that counts as gray, or
between pixels that count as one color. Lossy files make such differences."""

LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
"""Pillow's names of formats whose compression may change levels a little, mostly around edges."""

FAINT = 1 / 8
"""Fraction of the full scale below which integers look like labels, or like another bit depth."""

CLASSES = 256
"""Most colors of a class map (a picture with one flat color per class). It has also at least four
pixels per color on average."""


def read_mask(source: str | os.PathLike | np.ndarray | Image.Image) -> np.ndarray:
    """Reads a mask from a file, a PIL image or an array: float32 (h, w), 1 where frames may change.

    What the values mean is inferred. A class map is a picture with at most 256 flat colors.

    - Alpha that varies is the mask if the visible pixels have one color or are a class map. If they
      are gray, the mask is gray times alpha.
    - Gray that is 0 or 1 everywhere selects where it is 1. Gray whose maximum is 255 counts as 8
      bits in any dtype. Other integers are divided by the maximum of uint8 or uint16, and floats
      must be within 0 to 1.
    - In a class map with black, and in a picture with a palette of black and another color, all
      that is not black is selected; with a palette of two other colors, its second one, unless both
      are gray.

    Raises InputError, which says what was found, for anything else and for a mask that selects
    nothing or everything.
    """
    if isinstance(source, (str, os.PathLike)):
        with picture.opened(source) as image:
            return check_selective(_of_picture(image), f"it is {_kind(image)}")
    if isinstance(source, Image.Image):
        if not source.width or not source.height:
            raise InputError(f"mask: a picture of {source.width}x{source.height} holds nothing")
        try:
            return check_selective(_of_picture(source), f"it is {_kind(source)}")
        except InputError as error:
            raise InputError(f"mask: a picture {error}") from error
    try:
        array = np.asarray(source)
        return check_selective(_of_array(array), f"it is {array.dtype} {array.shape}")
    except InputError as error:
        raise InputError(f"mask: an array {error}") from error


def fit_mask(
    source: str | os.PathLike | np.ndarray | Image.Image, size: tuple[int, int], fit: str
) -> np.ndarray:
    """Reads a mask and fits it to `size` (width, height): float32 (h, w), 0 to 1.

    source: see `read_mask`. fit: "crop", "stretch" or "pad", see `fit_frame`. Raises InputError for
    what `read_mask` refuses, and if the fitted mask selects nothing or everything.
    """
    levels = np.rint(read_mask(source) * 255).astype(np.uint8)
    mask = fit_frame(np.dstack([levels] * 3), size, fit)[..., 0].astype(np.float32) / 255
    try:
        return check_selective(mask, f"fit {fit} to {size[0]}x{size[1]} leaves no more of it")
    except InputError as error:
        name = source if isinstance(source, (str, os.PathLike)) else "mask: it"
        raise InputError(f"{name} {error}") from error


def check_selective(mask: np.ndarray, details: str) -> np.ndarray:
    """Returns `mask`, (h, w) of 0 to 1, if it selects a part of the picture.

    Raises InputError, whose message ends with `details`, if the mask is 0 everywhere, 1 everywhere,
    or has about the same value above 0 everywhere.
    """
    if not mask.any():
        raise InputError(f"selects nothing as a mask: it is black everywhere; {details}")
    if mask.min() == 1:
        raise InputError(f"selects everything as a mask: it is white everywhere; {details}")
    if mask.min() > 0 and np.ptp(mask) <= CLOSE / 255:
        level = f"{mask.max():.0%} of white"
        raise InputError(f"selects everything as a mask: it is {level} everywhere; {details}")
    return mask


def _kind(image: Image.Image) -> str:
    return f"{image.width}x{image.height} of mode {image.mode}"


def _of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8 and array.size:
        return _of_picture(Image.fromarray(array))
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise InputError(
            f"of {array.dtype} {array.shape} is no mask; it must be (h, w), bool, integers or 0 to "
            "1, or a uint8 picture (h, w, 3 or 4)"
        )
    if (mask := _plain(array)) is not None:
        return mask
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(f"of {picture.value_range(array)} is not within 0 to 1")
        return array.astype(np.float32)
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"of {array.dtype}, {_values(array)}, is no mask; give uint8 or 0 to 1")
    return _of_levels(array)


def _of_picture(image: Image.Image) -> np.ndarray:
    upright = picture.upright(image)
    if upright.mode.startswith(("I", "F")):
        if (mask := _plain(np.asarray(upright))) is not None:
            return mask
        return _of_levels(np.asarray(picture.gray_or_color(image)))
    if (alpha := _alpha(upright)) is not None:
        if image.format == "AVIF":
            alpha = _without_traces(alpha)
        return _by_alpha(alpha, picture.rgb(image))
    if upright.mode == "P" and (mask := _by_palette(upright)) is not None:
        return mask
    levels = np.asarray(upright.convert("RGB"))
    if levels.max() <= 1:
        return levels.max(-1).astype(np.float32)
    colors = picture.rgb(image)
    return _by_color(_without_traces(colors) if image.format in LOSSY else colors)


def _without_traces(levels: np.ndarray) -> np.ndarray:
    """Sets the nearly black and nearly white levels of lossy files to 0 and 255, in uint8."""
    return np.where(levels <= CLOSE, 0, np.where(levels >= 255 - CLOSE, 255, levels)).astype(
        np.uint8
    )


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Alpha as uint8 (h, w); None if the image has none, or the same everywhere."""
    if image.mode in ("La", "LA"):
        alpha = image.getchannel(1)
    elif image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel(3)
    else:
        return None
    alpha = np.asarray(alpha)
    return None if alpha.min() == alpha.max() else alpha


def _by_alpha(alpha: np.ndarray, colors: np.ndarray) -> np.ndarray:
    mask = _of_levels(alpha)
    visible = colors[mask >= mask.max() / 2]
    if np.ptp(visible, axis=0).max() <= CLOSE:
        return mask
    if np.ptp(visible, axis=-1).max() <= CLOSE:
        return mask * _mean_level(colors)
    if _are_classes(visible):
        return mask
    raise InputError(
        f"is no mask: its alpha varies, from {picture.value_range(alpha)}, and so do its colors; "
        "give one of alpha over one color, or white where something may change"
    )


def _by_palette(image: Image.Image) -> np.ndarray | None:
    """The mask of a palette image with two colors; None if its colors have to be looked at."""
    indices, colors = np.asarray(image), np.asarray(image.convert("RGB"))
    if len(used := np.unique(indices)) != 2:
        return None
    dark = ~colors.any(-1)
    if dark.any():
        return np.asarray(~dark, np.float32)
    if used.tolist() == [0, 1] and np.ptp(colors, axis=-1).max() > CLOSE:
        return (indices == 1).astype(np.float32)
    return None


def _by_color(colors: np.ndarray) -> np.ndarray:
    if np.ptp(colors, axis=-1).max() <= CLOSE:
        _check_strength(colors)
        return _mean_level(colors)
    selected = colors.any(-1)
    if selected.all() or not _are_classes(colors):
        raise InputError(
            f"is no mask: it is in color, of {len(_distinct(colors))} colors; give one that is "
            "white where something may change"
        )
    return np.asarray(selected, np.float32)


def _mean_level(colors: np.ndarray) -> np.ndarray:
    return np.asarray(colors.mean(-1, dtype=np.float32) / 255)


def _plain(values: np.ndarray) -> np.ndarray | None:
    """The mask of values that are all 0 or 1, or 8-bit levels in a wider dtype; None for others."""
    least, most = values.min(), values.max()
    if least < 0 or values.dtype.kind == "f" and most <= 1:
        return None
    if most <= 1:
        return values.astype(np.float32)
    if most == 255 and values.dtype != np.uint8:
        return _of_levels(np.rint(values).astype(np.uint8))
    return None


def _of_levels(values: np.ndarray) -> np.ndarray:
    """The mask of uint8 or uint16 levels, divided by the maximum of their dtype."""
    if (mask := _plain(values)) is not None:
        return mask
    _check_strength(values)
    return (values / np.float32(np.iinfo(values.dtype).max)).astype(np.float32)


def _check_strength(values: np.ndarray) -> None:
    """Raises InputError for labels: small integers, and the maximum where some tools mark edges."""
    top = np.iinfo(values.dtype).max
    small, full = (values > 0) & (values < FAINT * top), values == top
    if small.sum() > full.sum() and not (values[~small & ~full]).any():
        raise InputError(
            f"is no mask: its values are {_values(values)}, of 0 to {top}: labels, it seems; give "
            f"one of 0 and 1, or with {top} where something may change"
        )


def _values(values: np.ndarray) -> str:
    """The distinct values if they are few, else their range, as text."""
    some = np.unique(values)
    return ", ".join(f"{v:g}" for v in some) if len(some) <= 8 else picture.value_range(values)


def _are_classes(colors: np.ndarray) -> bool:
    return len(_distinct(colors)) <= min(CLASSES, colors.size // 12)


def _distinct(colors: np.ndarray) -> np.ndarray:
    """The distinct colors of uint8 (..., 3), each as one number."""
    wide = colors.astype(np.uint32)
    return np.unique(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
