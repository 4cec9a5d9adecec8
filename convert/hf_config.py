"""Hugging Face config files, read field by field.

Every refusal names the file, the field and its value.
"""

import sys
from dataclasses import dataclass
from typing import Any

from anyv2v import checks
from anyv2v.errors import InputError


@dataclass(frozen=True)
class HFConfig:
    """The fields of one config file; each method reads one field and checks it.

    Raises InputError for a field that is absent and has no default, or whose value is not allowed.
    """

    where: str
    """The file, as messages name it."""
    values: dict
    defaults: dict
    """Values that the library that wrote the file takes for absent fields."""

    def __getitem__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        raise InputError(f"{self.where}: has no {name}")

    def error(self, name: str, right: str) -> InputError:
        """The error that reports a field's value and says what would be right."""
        absent = "" if name in self.values else " (the default, it is not given)"
        return InputError(f"{self.where}: {name} is {self[name]!r}{absent}; {right}")

    def one_of(self, name: str, *allowed: Any) -> Any:
        """Read a field of which only some values are supported."""
        value = self[name]
        # 1 == True in Python, but a count is no switch
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise self.error(name, f"only {' or '.join(map(repr, allowed))} is supported")
        return value

    def count(self, name: str) -> int:
        """Read a whole number from 1 to `checks.MOST`."""
        if not _is_count(self[name]):
            raise self.error(name, "a whole number from 1 is needed")
        return self[name]

    def counts(self, name: str) -> list[int]:
        """Read a list, not empty, of whole numbers from 1 to `checks.MOST`."""
        value = self[name]
        if not isinstance(value, list | tuple) or not value or not all(map(_is_count, value)):
            raise self.error(name, "a list of whole numbers from 1 is needed")
        return list(value)

    def divisor(self, name: str, multiples: list[int], multiples_name: str) -> int:
        """Read a count that divides each of `multiples`, which the file calls `multiples_name`."""
        number = self.count(name)
        if odd := [multiple for multiple in multiples if multiple % number]:
            raise self.error(name, f"it must divide {multiples_name}, among which is {odd[0]}")
        return number

    def positive_number(self, name: str) -> float:
        """Read a positive, finite number."""
        value = self[name]
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.error(name, "a positive number is needed")
        return float(value)

    def square_side(self, name: str) -> int:
        """Read the side of a square: a number, two equal numbers, or an equal height and width."""
        value = self[name]
        if isinstance(value, dict):
            value = [value.get("height"), value.get("width")]
        sides: list[Any] = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or sides[0] != sides[1] or not _is_count(sides[0]):
            raise self.error(name, "the side of a square is needed")
        return sides[0]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= checks.MOST
