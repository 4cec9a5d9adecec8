"""What may be injected from a source into a network of `wan`, and the candidates of the study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection

GROUPS = {"map": "self", "value": "self.value", "context": "self.context", "hidden": "ff"}
"""Group of features -> its site in a block."""
TOKENS = ("all", "rest")
SINGLY = (0.2, 0.6)
"""Fractions of the steps in which a block is injected alone."""
IN_RANGES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Fractions of the steps in which a range of blocks is injected."""


@dataclass(frozen=True)
class Part:
    """Features of one group, from some blocks, that are injected in the first steps."""

    group: str
    """One of `GROUPS`."""
    blocks: tuple[int, int]
    """The first and the last block."""
    until: float
    """Fraction of the steps, from the noisiest on."""
    tokens: str
    """One of `TOKENS`: "rest" leaves the tokens of the first frame the edit's own."""

    def __str__(self) -> str:
        first, last = self.blocks
        blocks = f"{first}" if first == last else f"{first}-{last}"
        return f"{self.group} {blocks} {self.until:g} {self.tokens}"

    @classmethod
    def read(cls, text: str) -> Part:
        """Makes a part of what `str` makes of it; raises InputError for another text."""
        found = re.fullmatch(r"(\w+) (\d+)(?:-(\d+))? ([\d.]+) (\w+)", text)
        if found is None:
            raise InputError(f"{text!r} is not as in 'map 2-7 0.6 rest'")
        group, first, last, until, tokens = found.groups()
        checks.one_of("group", group, tuple(GROUPS))
        checks.one_of("tokens", tokens, TOKENS)
        blocks = int(first), int(last or first)
        if blocks[1] < blocks[0]:
            raise InputError(f"{text!r}: block {blocks[1]} is before {blocks[0]}")
        return cls(group, blocks, checks.fraction("fraction of the steps", float(until)), tokens)


@dataclass(frozen=True)
class Candidate:
    """One way to inject; that without parts injects nothing."""

    parts: tuple[Part, ...]
    """The parts, of one group each."""

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts)) or "none"

    @classmethod
    def read(cls, text: str) -> Candidate:
        """Makes a candidate of what `str` makes of it; raises InputError for another text."""
        parts = [Part.read(part) for part in text.split(" + ") if text != "none"]
        if len({part.group for part in parts}) < len(parts):
            raise InputError(f"{text!r}: a group has two parts")
        return cls(tuple(parts))

    @property
    def injection(self) -> Injection:
        """What is injected; groups without a part are off."""
        fractions = dict.fromkeys(GROUPS, 0.0)
        sites = {}
        for part in self.parts:
            fractions[part.group] = part.until
            sites[part.group] = sites_of(part.group, part.blocks)
        return Injection(**fractions, sites=sites)

    @property
    def options(self) -> dict[str, object]:
        """The options of the backbone: which tokens are injected; those of other groups: all."""
        return {f"{g}_tokens": "all" for g in GROUPS} | {
            f"{part.group}_tokens": part.tokens for part in self.parts
        }


NOTHING = Candidate(())


def sites_of(group: str, blocks: tuple[int, int]) -> list[str]:
    """Returns the sites of a group in the blocks from the first to the last of `blocks`."""
    return [f"block.{i}.{GROUPS[group]}" for i in range(blocks[0], blocks[1] + 1)]


def everywhere(layers: int) -> Injection:
    """Returns the injection of all that any candidate injects, in all steps, to record it."""
    sites = {group: sites_of(group, (0, layers - 1)) for group in GROUPS}
    return Injection(**dict.fromkeys(GROUPS, 1.0), sites=sites)


def grid(layers: int) -> Iterator[Candidate]:
    """Yields each block alone, and ranges of them: for each group, fraction and set of tokens."""
    last = layers - 1
    # all, the halves, and all but the first third
    ranges = [(0, last), (0, last // 2), (layers // 2, last), (layers // 3, last)]
    blocks = [((i, i), SINGLY) for i in range(layers)] + [(r, IN_RANGES) for r in ranges]
    for group in GROUPS:
        for tokens in TOKENS:
            for pair, fractions in blocks:
                for until in fractions:
                    yield Candidate((Part(group, pair, until, tokens),))
