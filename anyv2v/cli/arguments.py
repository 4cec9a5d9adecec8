"""Turns the namespace of argparse into typed groups of options, which commands pass on."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")


def typed(group: type[T], args: Namespace) -> T:
    """Returns the options of one group, a dataclass whose fields have the names of the options.

    A field whose option this command does not have keeps its default.
    """
    names = [field.name for field in fields(group)]  # pyright: ignore[reportArgumentType]
    return group(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def listed(value: str | list[str] | None) -> list[str]:
    """Returns a list of the values of an option that may have one, several or none."""
    return [value] if isinstance(value, str) else value or []
