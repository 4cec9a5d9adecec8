"""Hugging Face config files, read field by field, with a check of each value.

Error messages name the file, the field and its value.
"""

import sys
from dataclasses import dataclass
from typing import Any

from anyv2v import checks
from anyv2v.errors import InputError


@dataclass(frozen=True)
class HFConfig:
    """The fields of one config file of diffusers or transformers.

    `config[name]` is the value of a field, or its default, unchecked; each method returns one field
    after a check. Both raise InputError if the field is absent and has no default; the methods also
    do so if its value is not allowed.
    """

    where: str
    """The file, as error messages name it."""
    values: dict
    """Name of a field -> its value in the file."""
    defaults: dict
    """Name of a field -> the value that the library that wrote the file assumes if it is absent."""

    def __getitem__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        raise InputError(f"{self.where}: has no {name}")

    def error(self, name: str, right: str) -> InputError:
        """Returns (does not raise) an InputError that gives the value of the field `name`.

        right: what would be right, as the end of the message, such as "a positive number is
        needed".
        """
        absent = "" if name in self.values else " (the default, it is not given)"
        return InputError(f"{self.where}: {name} is {self[name]!r}{absent}; {right}")

    def one_of(self, name: str, *allowed: Any) -> Any:
        """Returns the field `name`, which must have the type and value of one of `allowed`.

        Raises InputError otherwise.
        """
        value = self[name]
        # 1 == True in Python, but a count is no switch
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise self.error(name, f"only {' or '.join(map(repr, allowed))} is supported")
        return value

    def count(self, name: str) -> int:
        """Returns the field `name`, which must be a whole number from 1 to 2**24 (`checks.MOST`).

        Raises InputError otherwise.
        """
        if not _is_count(self[name]):
            raise self.error(name, "a whole number from 1 is needed")
        return self[name]

    def counts(self, name: str) -> list[int]:
        """Returns the field `name`, which must be a non-empty list of whole numbers from 1 on.

        The largest number allowed is 2**24 (`checks.MOST`). Raises InputError otherwise.
        """
        value = self[name]
        if not isinstance(value, list | tuple) or not value or not all(map(_is_count, value)):
            raise self.error(name, "a list of whole numbers from 1 is needed")
        return list(value)

    def divisor(self, name: str, multiples: list[int], multiples_name: str) -> int:
        """Returns the field `name`, a whole number from 1 on that divides each of `multiples`.

        multiples_name: name of the field that holds the multiples, for the error message. Raises
        InputError if the number does not divide them all.
        """
        number = self.count(name)
        if odd := [multiple for multiple in multiples if multiple % number]:
            raise self.error(name, f"it must divide {multiples_name}, among which is {odd[0]}")
        return number

    def positive_number(self, name: str) -> float:
        """Returns the field `name` as a float; it must be a positive, finite number.

        Raises InputError otherwise.
        """
        value = self[name]
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.error(name, "a positive number is needed")
        return float(value)

    def square_side(self, name: str) -> int:
        """Returns the side of the square that the field `name` describes, a whole number from 1 on.

        The field may hold a number, a list of two equal numbers, or {"height": ..., "width": ...}
        with equal values. Raises InputError otherwise.
        """
        value = self[name]
        if isinstance(value, dict):
            value = [value.get("height"), value.get("width")]
        sides: list[Any] = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or sides[0] != sides[1] or not _is_count(sides[0]):
            raise self.error(name, "the side of a square is needed")
        return sides[0]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= checks.MOST
