"""Reading the sections of a weights folder's config.json into dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from anyv2v import checks
from anyv2v.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

LONGEST = 8
"""The length of the longest list that a config may hold, such as channels by level of a network."""
DEEPEST = 64
"""The largest value of a "layers" key: layers of a CLIP encoder, or of one level of a UNet."""


@contextmanager
def config_errors(folder: Path) -> Iterator[None]:
    """Turns errors that a wrong config can cause inside the block into InputErrors.

    The message begins with the path of config.json in `folder`. An InputError that names the folder
    already is raised as it is.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, InputError) and str(folder) in str(error):
            raise
        raise InputError(f"{folder / 'config.json'}: {error}") from error


def section(config: dict, name: str, cls: type[T]) -> T:
    """Reads config[name], a section of config.json, into the dataclass `cls` and returns it.

    The section must hold exactly one key for each field: the field's name or, where the field is
    declared with `field(metadata={"key": ...})`, that key. Values must have the field's type: whole
    numbers from 1 to 2**24 (`checks.MOST`), finite numbers, strings, booleans, and lists (of 1 to
    8 or, where the field is declared with `field(metadata={"longest": ...})`, so many) and mappings
    of those; a field of type `object` takes a number or a string. Raises InputError otherwise.
    """
    values = config.get(name)
    if not isinstance(values, dict):
        raise InputError(f"there is no section {name!r}")
    keys = {field.name: _key(field) for field in fields(cls)}
    if set(keys.values()) != set(values):
        wrong = [f"{key} is missing" for key in sorted(set(keys.values()) - set(values))]
        wrong += [f"{key} is not known" for key in sorted(set(values) - set(keys.values()))]
        raise InputError(f"section {name!r}: {', '.join(wrong)}")
    kinds = get_type_hints(cls)
    for field in fields(cls):
        key, longest = _key(field), field.metadata.get("longest", LONGEST)
        _check(f"section {name!r}: {key}", values[key], kinds[field.name], longest)
        if key == "layers":
            checks.whole(f"section {name!r}: {key}", values[key], 1, DEEPEST)
    return cls(**{attribute: values[key] for attribute, key in keys.items()})


def _key(field: Field) -> str:
    """Returns the JSON key of a field."""
    return field.metadata.get("key", field.name)


def _check(name: str, value: Any, kind: Any, longest: int = LONGEST) -> None:
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= longest:
            raise InputError(f"{name}: {value!r} is not a list of 1 to {longest}")
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
