"""Arithmetic on sizes (width, height): proportions, crops and fits."""

from __future__ import annotations

from anyv2v import checks
from anyv2v.errors import InputError

Size = tuple[int, int]
"""(width, height) in pixels."""

ALIKE = 0.02
"""Largest relative difference of proportions that count as the same. Proportions differ a little
because sides are whole pixels, which many image editors round to multiples of 8 or more."""


def alike(a: Size, b: Size) -> bool:
    """Whether two sizes have the same proportions up to `ALIKE`, a relative difference of 2 %."""
    ratios = sorted((a[0] * b[1], a[1] * b[0]))
    return ratios[1] <= (1 + ALIKE) * ratios[0]


def fit_like(picture: Size, clip: Size, target: Size) -> str | None:
    """Chooses how an edited frame of size `picture` is fitted to a clip that was cropped.

    clip: the clip's size before cropping. target: its size afterwards. Returns "crop" if the
    picture has the proportions of `clip`, so that the same part is cut out of both; "stretch" if it
    has those of `target`, so that all of it is used; None if it has neither.
    """
    if alike(picture, clip):
        return "crop"
    return "stretch" if alike(picture, target) else None


def check_fit(name: str, picture: Size, clip: Size, target: Size) -> str:
    """Returns the result of `fit_like`, "crop" or "stretch".

    Raises InputError about the picture, which is called `name` in the message, where that is None.
    """
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
    """Returns which side of a picture of size `source` is cut if it is cropped to fill `target`.

    The result is "width" or "height", and the fraction of that side that is lost, 0 to 1.
    """
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return "width", 1 - h * to_w / (w * to_h)
    return "height", 1 - w * to_h / (h * to_w)


def size_of_short_side(short: int, source: Size, factor: int = 1) -> Size:
    """Returns the size with the proportions of `source` whose shorter side is `short` pixels.

    Sides are rounded to the nearest multiple of `factor`, and are at least `factor`: first the
    shorter side, then the longer one in proportion to it. Raises InputError if `short` is not a
    positive whole number.
    """
    short = checks.count("size", short)
    units = max(1, round(short / factor))
    width, height = (factor * round(units * side / min(source)) for side in source)
    return width, height


def inscribed_size(source: Size, target: Size) -> Size:
    """Returns the largest size with the proportions of `source` that fits into `target`."""
    (w, h), (to_w, to_h) = source, target
    if w * to_h >= h * to_w:
        return to_w, max(1, round(h * to_w / w))
    return max(1, round(w * to_h / h)), to_h


def _dimensions(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
