"""Their configs, read field by field: every refusal names the file, the field and its value."""

import sys
from dataclasses import dataclass
from typing import Any

from anyv2v import checks
from anyv2v.errors import InputError


@dataclass(frozen=True)
class Fields:
    """where: the file, for messages. defaults: what the library that wrote it takes for absent."""

    where: str
    values: dict
    defaults: dict

    def __getitem__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        raise InputError(f"{self.where}: has no {name}")

    def refuse(self, name: str, right: str) -> InputError:
        absent = "" if name in self.values else " (the default, it is not given)"
        return InputError(f"{self.where}: {name} is {self[name]!r}{absent}; {right}")

    def only(self, name: str, *allowed) -> Any:
        """A field of which we implement some values."""
        value = self[name]
        # 1 == True in python, but a count is no switch
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise self.refuse(name, f"only {' or '.join(map(repr, allowed))} is supported")
        return value

    def count(self, name: str) -> int:
        if not _is_count(self[name]):
            raise self.refuse(name, "a whole number from 1 is needed")
        return self[name]

    def counts(self, name: str) -> list[int]:
        value = self[name]
        if not isinstance(value, list | tuple) or not value or not all(map(_is_count, value)):
            raise self.refuse(name, "a list of whole numbers from 1 is needed")
        return list(value)

    def divides(self, name: str, widths: list[int], what: str) -> int:
        """A count that divides each of `widths`, which the file calls `what`."""
        number = self.count(name)
        if odd := [width for width in widths if width % number]:
            raise self.refuse(name, f"it must divide {what}, among which is {odd[0]}")
        return number

    def number(self, name: str) -> float:
        """A positive number."""
        value = self[name]
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.refuse(name, "a positive number is needed")
        return float(value)

    def side(self, name: str) -> int:
        """The side of a square, given as a number, as two equal ones, or as height and width."""
        value = self[name]
        if isinstance(value, dict):
            value = [value.get("height"), value.get("width")]
        sides = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or sides[0] != sides[1] or not _is_count(sides[0]):
            raise self.refuse(name, "the side of a square is needed")
        return sides[0]


def _is_count(value) -> bool:
    return type(value) is int and 0 < value <= checks.MOST
