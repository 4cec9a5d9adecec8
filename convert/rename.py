"""Renaming of parameters between published checkpoints and our networks, in both directions.

A rule names one place of a network (a layer, or a single parameter) as the checkpoint does and as
our network does. {} stands for a number; `.weight` or `.bias` after the place stays as it is. A
name must match exactly one rule, so no rule can change the result of another.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

from anyv2v.errors import InputError

Side = Literal["theirs", "ours"]
"""Whose names: those of the published checkpoint ("theirs") or of our networks ("ours")."""


@dataclass(frozen=True)
class Rule:
    """The names of one layer or parameter in the checkpoint (theirs) and in our network (ours)."""

    theirs: str
    """The checkpoint's name, with {} for each number, such as "down_blocks.{}.resnets.{}.conv1"."""
    ours: str
    """Our name, with {} for the same numbers in the same order, such as "down.{}.res.{}.conv1"."""
    squeeze: int = 0
    """How many trailing axes of length 1 the checkpoint's weight has that ours lacks."""
    transpose: bool = False
    """Whether the checkpoint stores the matrix as (in, out), where ours is (out, in)."""


class Renamed(NamedTuple):
    """The new name of a parameter, and the rule that it follows from."""

    name: str
    rule: Rule

    @property
    def squeeze(self) -> int:
        """How many trailing axes of length 1 the checkpoint's tensor has that ours lacks.

        A layer's bias has none, whatever its weight has.
        """
        return 0 if self.name.endswith(".bias") else self.rule.squeeze

    def their_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the tensor's shape in the checkpoint, given its shape `ours` in our network."""
        shape = ours[::-1] if self.rule.transpose else ours
        return (*shape, *(1,) * self.squeeze)


def rules(pairs: dict[str, str]) -> tuple[Rule, ...]:
    """Returns one rule for each entry, the checkpoint's name of a place -> our name of it."""
    return tuple(Rule(theirs, ours) for theirs, ours in pairs.items())


def prefixed(theirs: str, ours: str, inner: Iterable[Rule]) -> tuple[Rule, ...]:
    """Returns the rules `inner` of a submodule with its path put before the names on both sides.

    theirs, ours: the path of the submodule in the checkpoint and in our network; "" adds nothing.
    """
    return tuple(
        replace(rule, theirs=_join(theirs, rule.theirs), ours=_join(ours, rule.ours))
        for rule in inner
    )


def rename(names: Iterable[str], table: Sequence[Rule], to: Side = "ours") -> dict[str, Renamed]:
    """Maps each of the names to its name on the side `to`, with the rule that it follows from.

    The names are those of the other side; `to` is "ours" by default. Raises InputError if no rule
    or several rules match a name, or if two names would become the same.
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
    """Returns the rules of `table` that match none of the names; arguments as in `rename`.

    Raises InputError like `rename`, for example if no rule matches a name.
    """
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
