"""How pictures of one size come to another: pure arithmetic on (width, height)."""

from __future__ import annotations

from anyv2v import checks
from anyv2v.errors import InputError

Size = tuple[int, int]

ALIKE = 0.02
"""Proportions that differ by less are taken for the same: sides are whole pixels, and editors round
them to multiples of their own."""


def alike(a: Size, b: Size) -> bool:
    """Whether two pictures have the same proportions, within `ALIKE`."""
    ratios = sorted((a[0] * b[1], a[1] * b[0]))
    return ratios[1] <= (1 + ALIKE) * ratios[0]


def fit_like(picture: Size, clip: Size, target: Size) -> str | None:
    """How a picture beside a cropped clip comes to the clip's `target` size; None: in no way.

    "crop" if it has the proportions that the clip had, so that the same part of it is left;
    "stretch" if it has the target's already, so that it is taken as it is.
    """
    if alike(picture, clip):
        return "crop"
    return "stretch" if alike(picture, target) else None


def check_fit(name: str, picture: Size, clip: Size, target: Size) -> str:
    """`fit_like`, or an InputError that names the picture and says what would be right."""
    if (fit := fit_like(picture, clip, target)) is not None:
        return fit
    wanted = f"of the clip's proportions, such as {_by(clip)}"
    if not alike(clip, target):
        wanted += f", or of the size's, such as {_by(target)}"
    raise InputError(
        f"{name} is {_by(picture)}, the clip is {_by(clip)}: give a picture {wanted}; "
        "or say --fit crop, stretch or pad"
    )


def part_cut(source: Size, target: Size) -> tuple[str, float]:
    """What a crop to `target` leaves out: "width" or "height", and the part of it, 0 to 1."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return "width", 1 - h * to_w / (w * to_h)
    return "height", 1 - w * to_h / (h * to_w)


def size_of_short_side(short: int, source: Size, factor: int = 1) -> Size:
    """(width, height) of `source`'s proportions, its shorter side `short` pixels.

    Each side is the nearest multiple of `factor`, and at least one; the longer one of what keeps
    the proportions to the shorter as it is then.
    """
    short = checks.count("size", short)
    units = max(1, round(short / factor))
    width, height = (factor * round(units * side / min(source)) for side in source)
    return width, height


def inside(source: Size, target: Size) -> Size:
    """(width, height) of the largest picture of `source`'s proportions that fits into `target`."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return to_w, max(1, round(h * to_w / w))
    return max(1, round(w * to_h / h)), to_h


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
