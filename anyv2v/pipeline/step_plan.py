"""`StepPlan`: what each step of an edit does, decided once, before anything runs.

The editor runs it, `anyv2v plan` and the benchmarks count its cost, and the command line asks it
which latents and features an inversion has to store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anyv2v.diffusion.schedule import Level
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import Placement

SourcePass = Literal["shared", "always", "separate"]
"""How a step that injects gets the source's features.

shared: recorded features are replayed; without them the source is part of the batch, in the steps
that inject something.
always: the source is part of the batch in every step, as in the original.
separate: the source runs through the network by itself just before, is recorded, and replayed.
"""

Way = Literal["plain", "batched", "replayed", "separate"]
"""How one step runs.

plain: without the source. batched: with the source as first branch of the batch. replayed: with
features that were recorded before the run. separate: with features recorded just before the step.
"""


@dataclass(frozen=True)
class PlannedStep:
    """What one step of a run does."""

    level: Level
    sites: frozenset[str]
    """Where the source's features are injected."""
    way: Way
    taps: bool
    """Whether the caller's own taps are called."""

    def branches(self, edit_branches: int) -> int:
        """Number of branches in the batch, if those of all edits are `edit_branches`."""
        return edit_branches + (self.way == "batched")


@dataclass(frozen=True)
class StepPlan:
    """The steps of one run in order, from its start on.

    The defaults of I2VGen-XL (50 steps; conv 0.2, spatial 0.2, temporal 0.5) give

    steps   injected at           way                     branches in the batch
    0-9     conv, spatial and     replayed, or            [negative, edited]
            temporal sites        batched                 [source, negative, edited]
    10-24   temporal sites        replayed, or            [negative, edited]
                                  batched                 [source, negative, edited]
    25-49   nowhere               plain                   [negative, edited]

    A step is replayed if its features were recorded, and else batched. `anyv2v edit` records by
    itself while it inverts, as far as memory allows. `Editor.invert(video)` records nothing unless
    it is given `recording=`, so an edit of its source is batched. "negative" is the branch of the
    negative prompt; each further edit of the same batch adds its own two branches.
    `editor.step_plan(source=source).at(12)` is step 12 of a default edit of `source`.
    """

    steps: tuple[PlannedStep, ...]

    def at(self, index: int) -> PlannedStep:
        """The step of this index; indices count from the first step of the schedule, 0."""
        return self.steps[index - self.steps[0].level.index]

    @property
    def source_levels(self) -> list[Level]:
        """The levels whose latents of the source the run reads, that of its start first."""
        first, *others = self.steps
        return [first.level, *(step.level for step in others if step.way != "plain")]

    @property
    def replayed(self) -> list[Level]:
        """The levels of the steps that replay recorded features, in order."""
        return [step.level for step in self.steps if step.way == "replayed"]


def plan_steps(
    levels: Sequence[Level],
    sites: Mapping[int, frozenset[str]],
    cached: Callable[[Level, frozenset[str]], bool],
    source_pass: SourcePass = "shared",
    active: Collection[int] = (),
) -> StepPlan:
    """Decides how each step runs.

    levels: all levels of the run. sites: index of each step that is run -> where it injects.
    cached: (level, sites) -> whether these features of the source are recorded. active: the steps
    in which the caller's own taps are called; they see the source in the batch.
    """

    def way(level: Level, injected: frozenset[str], taps: bool) -> Way:
        if taps or source_pass == "always":
            return "batched"
        if not injected:
            return "plain"
        if source_pass == "separate":
            return "separate"
        return "replayed" if cached(level, injected) else "batched"

    steps = []
    for index, injected in sites.items():
        level, taps = levels[index], index in active
        steps.append(PlannedStep(level, injected, way(level, injected, taps), taps))
    return StepPlan(tuple(steps))


@dataclass(frozen=True)
class CachePlan:
    """Which features of a source will be recorded, and where they will lie."""

    levels: Mapping[int, Level]
    """Index of a step that injects something -> its level."""
    sites: Mapping[int, frozenset[str]]
    """Index -> where it injects."""
    sizes: Mapping[int, int]
    """Index -> bytes of the features."""
    placement: Mapping[int, Placement]
    """Index of each step that fits -> where its features will lie. Others are not recorded."""
    compact: bool
    """Whether the smallest form of each feature is recorded, see `Feature.record`."""

    @classmethod
    def fit(
        cls,
        plan: StepPlan,
        site_bytes: Mapping[str, int],
        device: int,
        host: int,
        compact: bool,
    ) -> CachePlan:
        """Fits as many steps as possible into `device` bytes, then into `host` bytes.

        A step that does not fit costs one more branch whatever its size, so the smallest steps are
        placed first.
        """
        steps = {step.level.index: step for step in plan.steps if step.sites}
        sizes = {i: sum(site_bytes[s] for s in step.sites) for i, step in steps.items()}
        placement: dict[int, Placement] = {}
        room: dict[Placement, int] = {"device": device, "host": host}
        for i in sorted(sizes, key=lambda i: (sizes[i], i)):
            for where in room:
                if sizes[i] <= room[where]:
                    placement[i] = where
                    room[where] -= sizes[i]
                    break
        levels = {i: step.level for i, step in steps.items()}
        return cls(levels, {i: step.sites for i, step in steps.items()}, sizes, placement, compact)

    def bytes(self, where: Placement | None = None) -> int:
        """Bytes of the features that will lie there; None: of all that will be recorded."""
        return sum(self.sizes[i] for i, p in self.placement.items() if where in (None, p))

    def covers(self, level: Level, sites: frozenset[str]) -> bool:
        """Whether all of these sites will be recorded at a level."""
        same = [i for i in self.placement if self.levels[i].identity == level.identity]
        return bool(same) and sites <= self.sites[same[0]]

    def placement_for(self, indices: Mapping[int, int]) -> dict[int, Placement]:
        """The placement by another run's indices: `indices` maps those of this plan to them.

        InputError if the other run does not visit one of the levels.
        """
        if missing := [i for i in self.placement if i not in indices]:
            t = self.levels[missing[0]].t
            raise InputError(f"recording: the inversion does not come to timestep {t:g}")
        return {indices[i]: where for i, where in self.placement.items()}

    def __str__(self) -> str:
        if not self.sizes:
            return "features: nothing is injected"
        form = "compact" if self.compact else "queries and keys"
        on_device, on_host = self.bytes("device"), self.bytes("host")
        parts = [f"{on_device / 1e9:.2f} GB on the device"] if on_device else []
        parts += [f"{on_host / 1e9:.2f} GB in pinned host memory"] if on_host else []
        text = f"features: {len(self.placement)} of {len(self.sizes)} steps kept"
        text += f" ({form}): {', '.join(parts)}" if parts else ""
        rest = sum(self.sizes.values()) - self.bytes()
        if rest:
            text += f"; {rest / 1e9:.2f} GB do not fit, there the source is part of the batch"
        return text
