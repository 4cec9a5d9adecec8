"""Arithmetic on sizes (width, height): proportions, crops and fits."""

from __future__ import annotations

from anyv2v import checks
from anyv2v.errors import InputError

Size = tuple[int, int]

ALIKE = 0.02
"""Relative difference below which proportions count as the same: sides are whole pixels, and many
editors round them to multiples."""


def alike(a: Size, b: Size) -> bool:
    """Whether two pictures have the same proportions, within `ALIKE`."""
    ratios = sorted((a[0] * b[1], a[1] * b[0]))
    return ratios[1] <= (1 + ALIKE) * ratios[0]


def fit_like(picture: Size, clip: Size, target: Size) -> str | None:
    """The `fit` that brings an edited frame to the `target` size of a cropped clip, or None.

    "crop" if the picture has the proportions of the uncropped clip, so that the same part is left;
    "stretch" if it has those of the target, so that it is taken as it is.
    """
    if alike(picture, clip):
        return "crop"
    return "stretch" if alike(picture, target) else None


def check_fit(name: str, picture: Size, clip: Size, target: Size) -> str:
    """The `fit` of `fit_like`; where it is None, an InputError about the picture `name`."""
    if (fit := fit_like(picture, clip, target)) is not None:
        return fit
    expected = f"of the clip's proportions, such as {_dimensions(clip)}"
    if not alike(clip, target):
        expected += f", or of the size's, such as {_dimensions(target)}"
    raise InputError(
        f"{name} is {_dimensions(picture)}, the clip is {_dimensions(clip)}: give a picture "
        f"{expected}; or say --fit crop, stretch or pad"
    )


def part_cut(source: Size, target: Size) -> tuple[str, float]:
    """The side that a crop to `target` cuts, "width" or "height", and by which fraction, 0 to 1."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return "width", 1 - h * to_w / (w * to_h)
    return "height", 1 - w * to_h / (h * to_w)


def size_of_short_side(short: int, source: Size, factor: int = 1) -> Size:
    """(width, height) of `source`'s proportions, its shorter side `short` pixels.

    Each side is rounded to the nearest multiple of `factor`, at least one; first the shorter side,
    then the longer one in proportion to it.
    """
    short = checks.count("size", short)
    units = max(1, round(short / factor))
    width, height = (factor * round(units * side / min(source)) for side in source)
    return width, height


def inscribed_size(source: Size, target: Size) -> Size:
    """(width, height) of the largest picture of `source`'s proportions that fits into `target`."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return to_w, max(1, round(h * to_w / w))
    return max(1, round(w * to_h / h)), to_h


def _dimensions(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
