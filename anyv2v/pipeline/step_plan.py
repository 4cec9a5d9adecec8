"""What each step of an edit does, decided once, before anything runs.

The editor runs it, `anyv2v plan` and the benchmarks count it, the command line asks it what an
inversion has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anyv2v.diffusion.schedule import Level
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import Place

SourcePass = Literal["shared", "always", "separate"]
"""How the source's features come to a step that injects them.

shared: what was recorded is replayed, else the source is a branch of the batch, in the steps that
inject something.
always: it is a branch of the batch in every step, as in the original.
separate: it is run by itself first, recorded, and replayed.
"""

Way = Literal["plain", "batched", "replayed", "separate"]
"""Of one step: without the source, with it in the batch, or with its features put back: those that
were recorded earlier, or in a pass just before."""


@dataclass(frozen=True)
class PlannedStep:
    level: Level
    sites: frozenset[str]
    """Where the source's features are injected."""
    way: Way
    taps: bool
    """Whether the caller's own taps are called."""

    def branches(self, of_edits: int) -> int:
        """How many branches its prediction has, if those of the edits are so many."""
        return of_edits + (self.way == "batched")


@dataclass(frozen=True)
class StepPlan:
    """The steps of one run, in order: those from its start on."""

    steps: tuple[PlannedStep, ...]

    def at(self, index: int) -> PlannedStep:
        return self.steps[index - self.steps[0].level.index]

    @property
    def source_levels(self) -> list[Level]:
        """The levels at which the run reads its source, that of its start first."""
        first, *others = self.steps
        return [first.level, *(step.level for step in others if step.way != "plain")]

    @property
    def replayed(self) -> list[Level]:
        return [step.level for step in self.steps if step.way == "replayed"]


def plan_steps(
    levels: Sequence[Level],
    sites: Mapping[int, frozenset[str]],
    cached: Callable[[Level, frozenset[str]], bool],
    source_pass: SourcePass = "shared",
    active: Collection[int] = (),
) -> StepPlan:
    """levels: of the whole run. sites: index of each step that is run -> where it injects.

    cached: whether these features of the source were recorded at a level. active: the steps in
    which the caller's own taps are called; the source is in their batch.
    """

    def way(level: Level, at: frozenset[str], taps: bool) -> Way:
        if taps or source_pass == "always":
            return "batched"
        if not at:
            return "plain"
        if source_pass == "separate":
            return "separate"
        return "replayed" if cached(level, at) else "batched"

    steps = []
    for index, at in sites.items():
        level, taps = levels[index], index in active
        steps.append(PlannedStep(level, at, way(level, at, taps), taps))
    return StepPlan(tuple(steps))


@dataclass(frozen=True)
class CachePlan:
    """Which features of a source will be recorded, and where they will be kept."""

    levels: Mapping[int, Level]
    """Index of a step that injects something -> its level."""
    sites: Mapping[int, frozenset[str]]
    """Index -> where it injects."""
    sizes: Mapping[int, int]
    """Index -> bytes of the features."""
    places: Mapping[int, Place]
    """Where those steps go that fit."""
    compact: bool

    @classmethod
    def fit(
        cls,
        plan: StepPlan,
        site_bytes: Mapping[str, int],
        device: int,
        host: int,
        compact: bool,
    ) -> CachePlan:
        """As many steps as fit into the bytes of the device, then into those of the host.

        At the others the source is in the batch, which costs the same whatever their size: so the
        smallest come first.
        """
        steps = {step.level.index: step for step in plan.steps if step.sites}
        sizes = {i: sum(site_bytes[s] for s in step.sites) for i, step in steps.items()}
        places: dict[int, Place] = {}
        room = {"device": device, "host": host}
        for i in sorted(sizes, key=lambda i: (sizes[i], i)):
            if place := next((p for p in room if sizes[i] <= room[p]), None):
                places[i] = place
                room[place] -= sizes[i]
        levels = {i: step.level for i, step in steps.items()}
        return cls(levels, {i: step.sites for i, step in steps.items()}, sizes, places, compact)

    def bytes(self, place: Place | None = None) -> int:
        """Kept there, or altogether."""
        return sum(self.sizes[i] for i, p in self.places.items() if place in (None, p))

    def serves(self, level: Level, sites: frozenset[str]) -> bool:
        """Whether these sites will be recorded at a level."""
        there = [i for i in self.places if self.levels[i].noise == level.noise]
        return bool(there) and sites <= self.sites[there[0]]

    def placed(self, indices: Mapping[int, int]) -> dict[int, Place]:
        """Where the features go, by another run's indices of the same levels.

        InputError if that run does not come to one of them.
        """
        if missing := [i for i in self.places if i not in indices]:
            t = self.levels[missing[0]].t
            raise InputError(f"recording: the inversion does not come to timestep {t:g}")
        return {indices[i]: place for i, place in self.places.items()}

    def __str__(self) -> str:
        if not self.sizes:
            return "features: nothing is injected"
        form = "compact" if self.compact else "queries and keys"
        kept = [
            f"{self.bytes(place) / 1e9:.2f} GB {where}"
            for place, where in (("device", "on the device"), ("host", "in pinned host memory"))
            if self.bytes(place)
        ]
        text = f"features: {len(self.places)} of {len(self.sizes)} steps kept"
        text += f" ({form}): {', '.join(kept)}" if kept else ""
        left = sum(self.sizes.values()) - self.bytes()
        if left:
            text += f"; {left / 1e9:.2f} GB do not fit, there the source rides along"
        return text
