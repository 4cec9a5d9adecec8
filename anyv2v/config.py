"""Reading the sections of a weights folder's config.json."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from anyv2v import checks
from anyv2v.errors import InputError

T = TypeVar("T")

LONGEST = 8
"""No list is longer: levels of a network, channels of a picture."""
DEEPEST = 64
"""Layers of a tower, or of one level of a network."""


@contextmanager
def blaming(folder: Path) -> Iterator[None]:
    """Whatever a config makes go wrong is an InputError that names its file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, InputError) and str(folder) in str(error):
            raise
        raise InputError(f"{folder / 'config.json'}: {error}") from error


def section(config: dict, name: str, cls: type[T]) -> T:
    """The dataclass `cls` from config[name].

    InputError unless it holds just its fields, each of its type: whole numbers from 1 to
    `checks.MOST`, finite numbers, texts, and lists and mappings of those; `object` is a number or a
    text.
    """
    values = config.get(name)
    if not isinstance(values, dict):
        raise InputError(f"there is no section {name!r}")
    wanted, given = {f.name for f in fields(cls)}, set(values)
    if wanted != given:
        wrong = [f"{k} is missing" for k in sorted(wanted - given)]
        wrong += [f"{k} is not known" for k in sorted(given - wanted)]
        raise InputError(f"section {name!r}: {', '.join(wrong)}")
    for key, kind in get_type_hints(cls).items():
        _check(f"section {name!r}: {key}", values[key], kind)
        if key == "layers":
            checks.whole(f"section {name!r}: {key}", values[key], 1, DEEPEST)
    return cls(**values)


def _check(name: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= LONGEST:
            raise InputError(f"{name}: {value!r} is not a list of 1 to {LONGEST}")
        for each in value:
            _check(name, each, get_args(kind)[0])
    elif get_origin(kind) is Mapping:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise InputError(f"{name}: {checks.shown(value)} is not a mapping of names")
        for key, each in value.items():
            _check(f"{name}: {key}", each, get_args(kind)[1])
    elif kind is object:
        if not isinstance(value, str):
            _check(name, value, float)
    elif kind is float:
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise InputError(f"{name}: {value!r} is not a finite number")
    elif type(value) is not kind:
        raise InputError(f"{name}: {value!r} is not of type {kind.__name__}")
    elif kind is int:
        checks.count(name, value)
