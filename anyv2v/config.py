"""Reading the sections of a weights folder's config.json."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

from anyv2v.errors import InputError

T = TypeVar("T")


def section(config: dict, name: str, cls: type[T]) -> T:
    """The dataclass `cls` from config[name]; InputError unless it holds just its fields."""
    values = config.get(name)
    if not isinstance(values, dict):
        raise InputError(f"there is no section {name!r}")
    wanted, given = {f.name for f in fields(cls)}, set(values)
    if wanted != given:
        wrong = [f"{k} is missing" for k in sorted(wanted - given)]
        wrong += [f"{k} is not known" for k in sorted(given - wanted)]
        raise InputError(f"section {name!r}: {', '.join(wrong)}")
    return cls(**values)
