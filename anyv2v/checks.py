"""Checks of arguments: each returns the valid value, or raises an InputError that names it."""

from __future__ import annotations

import difflib
import errno
import math
import operator
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, SupportsIndex

from anyv2v.errors import InputError

MOST = 2**24
"""Bound of every count (frames, pixels of a side, frames per second); none is this large."""
MOST_SEED = 2**64 - 1
"""The largest seed of a `torch.Generator`."""
FEW = 8
"""Up to this many names a message lists all."""
SHOWN = 80
"""Most characters of a value in a message."""


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most` (None: unbounded), as an int; True is none."""
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        end = "up" if most is None else f"to {most}"
        raise InputError(f"{name}: {shown(value)} is not a whole number from {least} {end}")
    return number


def count(name: str, value: object) -> int:
    """A whole number from 1 to MOST."""
    return whole(name, value, 1, MOST)


def seed(value: int) -> int:
    """A seed of a `torch.Generator`: a whole number from 0 to 2**64 - 1."""
    return whole("seed", value, 0, MOST_SEED)


def finite(name: str, value: object) -> float:
    """A finite number, as a float."""
    if not math.isfinite(number := _number(value)):
        raise InputError(f"{name}: {shown(value)} is not a finite number")
    return number


def positive(name: str, value: object) -> float:
    """A finite number above 0, as a float."""
    if not (number := finite(name, value)) > 0:
        raise InputError(f"{name}: {shown(value)} is not above 0")
    return number


def fraction(name: str, value: object) -> float:
    """A number from 0 to 1, as a float."""
    if not 0.0 <= (number := _number(value)) <= 1.0:
        raise InputError(f"{name}: {shown(value)} is not between 0 and 1")
    return number


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """One of the `known` names."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name}: {shown(value)} is not one of {', '.join(known)}")
    return value


def size(value: Iterable[int], factor: int = 1) -> tuple[int, int]:
    """(width, height) in pixels, both divisible by `factor`; the error names the nearest size."""
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


def text(name: str, value: object) -> str:
    """A str."""
    if not isinstance(value, str):
        raise InputError(f"{name}: {shown(value)} is not a text")
    return value


def texts(**values: str) -> None:
    """Checks several strs, by the names of their arguments."""
    for name, value in values.items():
        text(name, value)


def path(name: str, value: str | os.PathLike) -> Path:
    """A valid path with `~` expanded, whether or not there is a file."""
    expanded = ""
    try:
        expanded = os.path.expanduser(os.fspath(value))
        if not isinstance(expanded, str) or not expanded:
            raise ValueError
        # refuses names that no file can have: with a null character, a surrogate, or too long
        os.lstat(expanded)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {shown(value)} is not a path") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{name}: {shown(value)}: {error.strerror}") from None
    return Path(expanded)


def flag(name: str, value: bool) -> bool:
    """A bool of Python or numpy, as a bool. Other types are refused, whatever their truth value."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name}: {shown(value)} is neither True nor False")
    return bool(value)


def kind(name: str, value: Any, kinds: type | tuple[type, ...], right: str) -> Any:
    """A value of one of these types; `right` says in the error what is expected."""
    if not isinstance(value, kinds):
        raise InputError(f"{name}: {shown(value)} is not {right}")
    return value


def called(name: str, value: Any) -> Any:
    """A callable, or None."""
    if value is not None and not callable(value):
        raise InputError(f"{name}: {shown(value)} is not a function")
    return value


def names(name: str, value: Iterable[str]) -> frozenset[str]:
    """A set of names. A single str is refused, because it would be split into its letters."""
    try:
        unique = None if isinstance(value, (str, bytes)) else frozenset(value)
    except TypeError:
        unique = None
    if unique is None or not all(isinstance(each, str) for each in unique):
        raise InputError(f"{name}: {shown(value)} is not a list of names")
    return unique


def known(name: str, values: Collection[str], allowed: Collection[str], what: str) -> None:
    """InputError for `values` that are not `allowed`, with similar names, or all if they are few.

    what: the word for one of them in the message, such as "site".
    """
    unknown = sorted(map(str, set(values).difference(allowed)))
    if not unknown:
        return
    near = sorted(allowed)
    if len(near) > FEW:
        near = difflib.get_close_matches(unknown[0], near, n=3)
    hint = f"; there is {' and '.join(near)}" if near else ""
    raise InputError(f"{name}: no such {what}: {', '.join(unknown)}{hint}")


def shown(value: Any) -> str:
    """A value as text for a message, at most `SHOWN` characters; tensors by dtype and shape."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    try:
        written = repr(value)
    except ValueError:  # Python writes no whole numbers of more than 4300 digits
        written = f"a {type(value).__name__}"
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 4]} ..."


def _number(value: Any) -> float:
    """The value as a float; NaN if it is not a number."""
    if isinstance(value, (bool, str, bytes, bytearray)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
