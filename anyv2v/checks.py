"""Arguments of public functions: the value if it will do, else an InputError that names it."""

from __future__ import annotations

import difflib
import errno
import math
import operator
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from anyv2v.errors import InputError

MOST = 2**24
"""No count is larger (frames, pixels of a side, frames per second): none is meant, none fits."""
MOST_SEED = 2**64 - 1
"""Of a `torch.Generator`."""
FEW = 8
"""Names that a message lists one and all."""
SHOWN = 80
"""Characters of a value that a message shows."""


def whole(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        end = "up" if most is None else f"to {most}"
        raise InputError(f"{name}: {shown(value)} is not a whole number from {least} {end}")
    return number


def count(name: str, value: int) -> int:
    """A whole number from 1 to MOST."""
    return whole(name, value, 1, MOST)


def seed(value: int) -> int:
    return whole("seed", value, 0, MOST_SEED)


def finite(name: str, value: float) -> float:
    if not math.isfinite(number := _number(value)):
        raise InputError(f"{name}: {shown(value)} is not a finite number")
    return number


def positive(name: str, value: float) -> float:
    if not (number := finite(name, value)) > 0:
        raise InputError(f"{name}: {shown(value)} is not above 0")
    return number


def fraction(name: str, value: float) -> float:
    if not 0.0 <= (number := _number(value)) <= 1.0:
        raise InputError(f"{name}: {shown(value)} is not between 0 and 1")
    return number


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name}: {shown(value)} is not one of {', '.join(known)}")
    return value


def size(value: tuple[int, int], factor: int = 1) -> tuple[int, int]:
    """(width, height), both divisible by `factor`; the error names the nearest that are."""
    try:
        width, height = (operator.index(x) for x in value)
    except (TypeError, ValueError):
        width = height = 0
    if not (0 < width <= MOST and 0 < height <= MOST):
        raise InputError(
            f"size: {shown(value)} is not (width, height), two whole numbers from 1 to {MOST}"
        )
    nearest = [max(factor, factor * round(x / factor)) for x in (width, height)]
    if [width, height] != nearest:
        raise InputError(
            f"size: {width}x{height} is not divisible by {factor}; "
            f"the nearest that works is {nearest[0]}x{nearest[1]}"
        )
    return width, height


def text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: {shown(value)} is not a text")
    return value


def texts(**given: str) -> None:
    for name, value in given.items():
        text(name, value)


def path(name: str, value: str | os.PathLike) -> Path:
    """A path that there may be, `~` expanded."""
    try:
        given = os.path.expanduser(os.fspath(value))
        if not isinstance(given, str) or not given:
            raise ValueError
        # what no file can be called: a character of code 0, half a character, too many of them
        os.lstat(given)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {shown(value)} is not a path") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{name}: {shown(value)}: {error.strerror}") from None
    return Path(given)


def flag(name: str, value: bool) -> bool:
    """Of Python or of numpy; others have no one truth."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name}: {shown(value)} is neither True nor False")
    return bool(value)


def kind(name: str, value: Any, kinds: type | tuple[type, ...], right: str) -> Any:
    """A value of one of these types; `right`: what those are, and where one gets them."""
    if not isinstance(value, kinds):
        raise InputError(f"{name}: {shown(value)} is not {right}")
    return value


def called(name: str, value: Any) -> Any:
    """None, or what can be called."""
    if value is not None and not callable(value):
        raise InputError(f"{name}: {shown(value)} is not a function")
    return value


def names(name: str, value: Iterable[str]) -> frozenset[str]:
    """Several names; one alone would be taken for its letters."""
    try:
        found = None if isinstance(value, (str, bytes)) else frozenset(value)
    except TypeError:
        found = None
    if found is None or not all(isinstance(each, str) for each in found):
        raise InputError(f"{name}: {shown(value)} is not a list of names")
    return found


def known(name: str, given: Collection[str], there: Collection[str], what: str) -> None:
    """InputError for the first of `given` that is not `there`, with those that are spelled alike.

    Of few it names all. what: "site", one of them.
    """
    unknown = sorted(map(str, set(given).difference(there)))
    if not unknown:
        return
    near = sorted(there)
    if len(near) > FEW:
        near = difflib.get_close_matches(unknown[0], near, n=3)
    hint = f"; there is {' and '.join(near)}" if near else ""
    raise InputError(f"{name}: no such {what}: {', '.join(unknown)}{hint}")


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    try:
        found = repr(value)
    except ValueError:  # Python writes no whole numbers of more than 4300 digits
        found = f"a {type(value).__name__}"
    return found if len(found) <= SHOWN else f"{found[: SHOWN - 4]} ..."


def _number(value: Any) -> float:
    """NaN for what is none."""
    if isinstance(value, (bool, str, bytes, bytearray)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
