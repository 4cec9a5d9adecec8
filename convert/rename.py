"""Names of parameters in two languages: the rules are data, and go both ways.

A rule names one place of a network (a layer, or a single parameter) in the checkpoint's language
and in ours. {} stands for a number; `.weight` or `.bias` after the place stays as it is. A name
belongs to exactly one rule, so a rule cannot change what another one has made.
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
    """One place in both languages.

    squeeze: how many axes of length 1 the checkpoint's weight has at its end that ours has not.
    transpose: whether the checkpoint's matrix is (in, out), ours is (out, in).
    """

    theirs: str
    ours: str
    squeeze: int = 0
    transpose: bool = False


class Renamed(NamedTuple):
    name: str
    rule: Rule

    @property
    def squeeze(self) -> int:
        return self.rule.squeeze if self.name.endswith(".weight") else 0

    def their_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the checkpoint of what has this shape here."""
        shape = ours[::-1] if self.rule.transpose else ours
        return (*shape, *(1,) * self.squeeze)


def rules(pairs: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(theirs, ours) for theirs, ours in pairs.items())


def under(theirs: str, ours: str, inner: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules, one floor deeper in both languages."""
    return tuple(
        replace(rule, theirs=_join(theirs, rule.theirs), ours=_join(ours, rule.ours))
        for rule in inner
    )


def rename(names: Iterable[str], table: Sequence[Rule], to: Side = "ours") -> dict[str, Renamed]:
    """Every name -> its name in the other language, and the rule that says so.

    InputError: names that no rule or several rules know, and two names that become one.
    """
    names = list(names)
    renamed, taken, unknown = {}, {}, []
    for name in names:
        hits = [Renamed(new, rule) for rule in table if (new := _apply(rule, name, to))]
        if not hits:
            unknown.append(name)
            continue
        if len(hits) > 1:
            places = ", ".join(_sides(hit.rule, to)[0] for hit in hits)
            raise InputError(f"{name} is known to several rules: {places}")
        new = hits[0].name
        if new in taken:
            raise InputError(f"{taken[new]} and {name} both become {new}")
        taken[new] = name
        renamed[name] = hits[0]
    if unknown:
        raise InputError(f"no rule knows {', '.join(unknown)}")
    return renamed


def unused(names: Iterable[str], table: Sequence[Rule], to: Side = "ours") -> list[Rule]:
    """The rules that none of the names needs."""
    used = {renamed.rule for renamed in rename(names, table, to).values()}
    return [rule for rule in table if rule not in used]


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


def _sides(rule: Rule, to: Side) -> tuple[str, str]:
    return (rule.theirs, rule.ours) if to == "ours" else (rule.ours, rule.theirs)


def _apply(rule: Rule, name: str, to: Side) -> str | None:
    given, new = _sides(rule, to)
    match = _pattern(given).fullmatch(name)
    if match is None:
        return None
    *numbers, suffix = match.groups()
    return new.format(*numbers) + suffix


@cache
def _pattern(place: str) -> re.Pattern:
    numbers = re.escape(place).replace(re.escape("{}"), r"(\d+)")
    return re.compile(numbers + r"((?:\.weight|\.bias)?)")
