"""Checks of arguments: each returns a valid value, or raises an InputError.

`name` is the argument's name, with which the error's message begins.
"""

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
"""The largest count that is accepted (frames, pixels of a side, frames per second); no real one
comes near."""
MOST_SEED = 2**64 - 1
"""The largest seed that a `torch.Generator` takes."""
FEW = 8
"""The most allowed names that a message lists; of more it lists only similar ones."""
SHOWN = 80
"""The most characters of a value that a message quotes."""


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Returns `value` as an int if it is a whole number from `least` to `most`, both included.

    A `most` of None is no bound. Integers of numpy are whole numbers; floats and bools are not.
    Raises InputError, which names the argument `name`, otherwise.
    """
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
    """Returns `value` as an int if it is a whole number from 1 to `MOST` (2**24).

    Raises InputError, which names the argument `name`, otherwise.
    """
    return whole(name, value, 1, MOST)


def seed(value: int) -> int:
    """Returns `value` as an int if it is a seed of a `torch.Generator`: 0 to 2**64 - 1.

    Raises InputError otherwise.
    """
    return whole("seed", value, 0, MOST_SEED)


def finite(name: str, value: object) -> float:
    """Returns `value` as a float if it is a finite number; bools and strings are none.

    Raises InputError, which names the argument `name`, otherwise.
    """
    if not math.isfinite(number := _number(value)):
        raise InputError(f"{name}: {shown(value)} is not a finite number")
    return number


def positive(name: str, value: object) -> float:
    """Returns `value` as a float if it is a finite number above 0; bools and strings are none.

    Raises InputError, which names the argument `name`, otherwise.
    """
    if not (number := finite(name, value)) > 0:
        raise InputError(f"{name}: {shown(value)} is not above 0")
    return number


def fraction(name: str, value: object) -> float:
    """Returns `value` as a float if it is a number from 0 to 1; bools and strings are none.

    Raises InputError, which names the argument `name`, otherwise.
    """
    if not 0.0 <= (number := _number(value)) <= 1.0:
        raise InputError(f"{name}: {shown(value)} is not between 0 and 1")
    return number


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """Returns `value` if it is one of the strings in `known`.

    Raises InputError, which names the argument `name` and lists `known`, otherwise.
    """
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name}: {shown(value)} is not one of {', '.join(known)}")
    return value


def size(value: Iterable[int], factor: int = 1) -> tuple[int, int]:
    """Returns `value` as (width, height) if these are two pixel counts divisible by `factor`.

    Raises InputError unless both are whole numbers from 1 to `MOST`. If `factor` does not divide
    both, the error names the nearest size that it divides.
    """
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


def grouped(name: str, frames: int, group: int) -> int:
    """Returns `frames` if it is 1 more than a multiple of `group`, both whole numbers above 0.

    Raises InputError, which names the nearest numbers that are, otherwise.
    """
    below = frames - (frames - 1) % group
    if below == frames >= 1:
        return frames
    near = " and ".join(str(n) for n in (below, below + group) if n >= 1)
    raise InputError(
        f"{name}: {frames} is not 1 more than a multiple of {group}; the nearest: {near or 1}"
    )


def text(name: str, value: object) -> str:
    """Returns `value` if it is a str.

    Raises InputError, which names the argument `name`, otherwise.
    """
    if not isinstance(value, str):
        raise InputError(f"{name}: {shown(value)} is not a text")
    return value


def texts(**values: str) -> None:
    """Raises InputError unless every keyword argument is a str; its message names the argument."""
    for name, value in values.items():
        text(name, value)


def path(name: str, value: str | os.PathLike) -> Path:
    """Returns `value` as a Path with `~` expanded; there need not be a file of this name.

    Raises InputError, which names the argument `name`, if no file can have such a name: if it is
    empty, too long, contains a null character, or is no str or path of strs.
    """
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


def flag(name: str, value: object) -> bool:
    """Returns `value` as a bool if it is a bool of Python or numpy.

    Raises InputError, which names the argument `name`, for every other type, such as 0 and 1.
    """
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name}: {shown(value)} is neither True nor False")
    return bool(value)


def kind(name: str, value: Any, kinds: type | tuple[type, ...], right: str) -> Any:
    """Returns `value` if it is an instance of one of the types `kinds`.

    Raises InputError otherwise, which names the argument `name`, and says with the words in `right`
    what is expected ("a list of tensors").
    """
    if not isinstance(value, kinds):
        raise InputError(f"{name}: {shown(value)} is not {right}")
    return value


def called(name: str, value: Any) -> Any:
    """Returns `value` if it is callable or None.

    Raises InputError, which names the argument `name`, otherwise.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name}: {shown(value)} is not a function")
    return value


def names(name: str, value: Iterable[str]) -> frozenset[str]:
    """Returns the strings in `value`, any iterable of strings, as a frozenset.

    Raises InputError, which names the argument `name`, for anything else, a single str included: it
    would be split into its letters.
    """
    try:
        unique = None if isinstance(value, (str, bytes)) else frozenset(value)
    except TypeError:
        unique = None
    if unique is None or not all(isinstance(each, str) for each in unique):
        raise InputError(f"{name}: {shown(value)} is not a list of names")
    return unique


def known(name: str, values: Collection[str], allowed: Collection[str], what: str) -> None:
    """Raises InputError, which names the argument `name`, if some of `values` are not in `allowed`.

    The message lists what is allowed, or, of more than 8 names (`FEW`), similar ones. what: the
    word for one of the values in the message, such as "site".
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
    """Returns `value` as text for a message: its repr, cut to 80 characters (`SHOWN`).

    Arrays and tensors are described by type, dtype and shape.
    """
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
