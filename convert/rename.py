"""Renaming of parameters between published checkpoints and ours, by rules that work both ways.

A rule names one place of a network (a layer, or a single parameter) as the checkpoint does and as
we do. {} stands for a number; `.weight` or `.bias` after the place stays as it is. A name
belongs to exactly one rule, so no rule can change the result of another.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

from anyv2v.errors import InputError

Side = Literal["theirs", "ours"]


@dataclass(frozen=True)
class Rule:
    """The names of one place in the checkpoint (theirs) and in our networks (ours)."""

    theirs: str
    ours: str
    squeeze: int = 0
    """How many trailing axes of length 1 the checkpoint's weight has more than ours."""
    transpose: bool = False
    """Whether the checkpoint stores the matrix as (in, out); ours are (out, in)."""


class Renamed(NamedTuple):
    """The new name of a parameter, and the rule that gave it."""

    name: str
    rule: Rule

    @property
    def squeeze(self) -> int:
        """Trailing axes of length 1 that the checkpoint adds: of weights alone, not of biases."""
        return self.rule.squeeze if self.name.endswith(".weight") else 0

    def their_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The checkpoint's shape of a tensor that has the shape `ours` in our network."""
        shape = ours[::-1] if self.rule.transpose else ours
        return (*shape, *(1,) * self.squeeze)


def rules(pairs: dict[str, str]) -> tuple[Rule, ...]:
    """Make a rule of each pair (theirs, ours) of names."""
    return tuple(Rule(theirs, ours) for theirs, ours in pairs.items())


def prefixed(theirs: str, ours: str, inner: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules for a submodule: each name gets a prefix on both sides; "" adds none."""
    return tuple(
        replace(rule, theirs=_join(theirs, rule.theirs), ours=_join(ours, rule.ours))
        for rule in inner
    )


def rename(names: Iterable[str], table: Sequence[Rule], to: Side = "ours") -> dict[str, Renamed]:
    """Map every name to its name on the side `to`, with the rule that gave it.

    Raises InputError for names that no rule or several rules match, and for two names that would
    become one.
    """
    names = list(names)
    renamed, taken, unknown = {}, {}, []
    for name in names:
        matches = [Renamed(new, rule) for rule in table if (new := _apply(rule, name, to))]
        if not matches:
            unknown.append(name)
            continue
        if len(matches) > 1:
            places = ", ".join(_sides(match.rule, to)[0] for match in matches)
            raise InputError(f"{name} is known to several rules: {places}")
        new = matches[0].name
        if new in taken:
            raise InputError(f"{taken[new]} and {name} both become {new}")
        taken[new] = name
        renamed[name] = matches[0]
    if unknown:
        raise InputError(f"no rule knows {', '.join(unknown)}")
    return renamed


def unused_rules(names: Iterable[str], table: Sequence[Rule], to: Side = "ours") -> list[Rule]:
    """Return the rules that match none of the names."""
    used = {renamed.rule for renamed in rename(names, table, to).values()}
    return [rule for rule in table if rule not in used]


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


def _sides(rule: Rule, to: Side) -> tuple[str, str]:
    """The rule's old and new name when renaming to the side `to`."""
    return (rule.theirs, rule.ours) if to == "ours" else (rule.ours, rule.theirs)


def _apply(rule: Rule, name: str, to: Side) -> str | None:
    """The new name, or None if the rule does not match."""
    old, new = _sides(rule, to)
    match = _pattern(old).fullmatch(name)
    if match is None:
        return None
    *numbers, suffix = match.groups()
    return new.format(*numbers) + suffix


@cache
def _pattern(place: str) -> re.Pattern:
    numbers = re.escape(place).replace(re.escape("{}"), r"(\d+)")
    return re.compile(numbers + r"((?:\.weight|\.bias)?)")
