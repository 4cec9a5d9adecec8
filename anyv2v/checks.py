"""Arguments of public functions: the value if it will do, else an InputError that names it."""

from __future__ import annotations

import math
import operator

from anyv2v.errors import InputError


def whole(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        end = "up" if most is None else f"to {most}"
        raise InputError(f"{name}: {value!r} is not a whole number from {least} {end}")
    return number


def finite(name: str, value: float) -> float:
    try:
        # a text is no number, whatever it says: where it is used next, it would be a text again
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: {value!r} is not a finite number")
    return number


def positive(name: str, value: float) -> float:
    if not (number := finite(name, value)) > 0:
        raise InputError(f"{name}: {value!r} is not above 0")
    return number


def fraction(name: str, value: float) -> float:
    try:
        inside = 0.0 <= float(value) <= 1.0
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise InputError(f"{name}: {value!r} is not between 0 and 1")
    return float(value)


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{name}: {value!r} is not one of {', '.join(known)}")
    return value


def size(value: tuple[int, int], factor: int = 1) -> tuple[int, int]:
    """(width, height), both divisible by `factor`; the error names the nearest that are."""
    try:
        width, height = (operator.index(x) for x in value)
    except (TypeError, ValueError):
        width = height = 0
    if not (width > 0 and height > 0):
        raise InputError(f"size: {value!r} is not (width, height), two whole numbers above 0")
    nearest = [max(factor, factor * round(x / factor)) for x in (width, height)]
    if [width, height] != nearest:
        raise InputError(
            f"size: {width}x{height} is not divisible by {factor}; "
            f"the nearest that works is {nearest[0]}x{nearest[1]}"
        )
    return width, height
