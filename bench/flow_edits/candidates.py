"""What may be injected from a source into a network of `wan`, and the candidates of the study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from anyv2v.backbones.wan.sites import chosen_sites
from anyv2v.injection.fractions import Injection

GROUPS = ("map", "value", "context", "hidden")
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


@dataclass(frozen=True)
class Candidate:
    """One way to inject; that without parts injects nothing."""

    parts: tuple[Part, ...]
    """The parts, of one group each."""

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts)) or "none"

    @classmethod
    def read(cls, text: str) -> Candidate:
        """Makes a candidate of what `str` makes of it."""
        parts = []
        for part in text.split(" + ") if text != "none" else ():
            group, blocks, until, tokens = part.split()
            first, _, last = blocks.partition("-")
            parts.append(Part(group, (int(first), int(last or first)), float(until), tokens))
        return cls(tuple(parts))

    def injection(self, layers: int) -> Injection:
        """Returns the injection of a network with so many blocks."""
        fractions = dict.fromkeys(GROUPS, 0.0)
        sites = {}
        for part in self.parts:
            fractions[part.group] = part.until
            sites[part.group] = sites_of(part.group, layers, part.blocks)
        return Injection(**fractions, sites=sites)

    @property
    def options(self) -> dict[str, object]:
        """The options of the backbone: which tokens are injected; those of other groups: all."""
        return {f"{g}_tokens": "all" for g in GROUPS} | {
            f"{part.group}_tokens": part.tokens for part in self.parts
        }


NOTHING = Candidate(())


def sites_of(group: str, layers: int, blocks: tuple[int, int]) -> list[str]:
    """Returns the sites of a group in the blocks from the first to the last of `blocks`."""
    last = chosen_sites(layers)[group][-1].split(".", 2)[2]
    return [f"block.{i}.{last}" for i in range(blocks[0], blocks[1] + 1)]


def everywhere(layers: int) -> Injection:
    """Returns the injection of all that any candidate injects, in all steps, to record it."""
    whole = 0, layers - 1
    return Injection(
        **dict.fromkeys(GROUPS, 1.0), sites={g: sites_of(g, layers, whole) for g in GROUPS}
    )


def grid(layers: int) -> Iterator[Candidate]:
    """Yields nothing, each block alone, and ranges: for each group, fraction and set of tokens."""
    yield NOTHING
    last = layers - 1
    # all, the halves, and all but the first third
    ranges = [(0, last), (0, last // 2), (layers // 2, last), (layers // 3, last)]
    blocks = [((i, i), SINGLY) for i in range(layers)] + [(r, IN_RANGES) for r in ranges]
    for group in GROUPS:
        for tokens in TOKENS:
            for pair, fractions in blocks:
                for until in fractions:
                    yield Candidate((Part(group, pair, until, tokens),))
