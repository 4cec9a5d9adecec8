"""`StepPlan`: what each step of an edit does, decided once, before anything runs.

The editor runs the plan, `anyv2v plan` and the benchmarks compute its cost, and the command line
reads from it which latents and features an inversion has to store.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anyv2v.diffusion.schedule import Level
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import Placement
from anyv2v.runtime.memory import size_text

SourcePass = Literal["shared", "always", "separate"]
"""How an edit gets the source's features that it injects.

shared: recorded features are replayed; without them, the source is a branch of the batch in the
steps that inject something.
always: the source is a branch of the batch in every step, as in the original.
separate: before each step that injects, the source is predicted alone, and its features are
recorded; the step replays them.
"""

Way = Literal["plain", "batched", "replayed", "separate"]
"""How one step of an edit runs.

plain: without the source, so nothing is injected. batched: with the source as the first branch of
the batch. replayed: with features of the source that were recorded before the run. separate: with
features that are recorded just before the step.
"""


WAYS: dict[Way, str] = {
    "replayed": "replay recorded features of the source",
    "batched": "have the source in the batch",
    "separate": "predict the source first, and replay its features",
    "plain": "inject nothing",
}
"""What the log says of the steps that run in each way."""


@dataclass(frozen=True)
class PlannedStep:
    """What one step of an edit does."""

    level: Level
    """The noise level that the step starts from."""
    sites: frozenset[str]
    """The names of the sites (layers) where the source's features are injected."""
    way: Way
    """How the step gets them: "plain", "batched", "replayed" or "separate"."""
    taps: bool
    """Whether the caller's own taps (hooks at sites) are called."""

    def branches(self, edit_branches: int) -> int:
        """Returns the number of branches in the step's batch, the source included if it is one.

        edit_branches: the branches (negative, edited) of all edits together.
        """
        return edit_branches + (self.way == "batched")


@dataclass(frozen=True)
class StepPlan:
    """The steps of one edit run in order, from its start on.

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
    negative prompt; each further edit of the same batch adds its own two branches. Before the first
    cross-attention the branches of one edit share one row, since they have the same latents, unless
    taps are called there. `editor.step_plan(source=source).at(12)` is step 12 of a default edit of
    `source`.
    """

    steps: tuple[PlannedStep, ...]
    """The steps in the order in which they run, the noisiest first."""

    def at(self, index: int) -> PlannedStep:
        """Returns the step with this index in the whole schedule, whose noisiest step is 0.

        Steps before the start of the run are not in the plan, so `index` must not be smaller.
        """
        return self.steps[index - self.steps[0].level.index]

    @property
    def source_levels(self) -> list[Level]:
        """The levels at which the run reads latents of the source, in order.

        They are the level that the run starts from, and those of all later steps but plain ones.
        """
        first, *others = self.steps
        return [first.level, *(step.level for step in others if step.way != "plain")]

    def log_to(self, log: logging.Logger) -> None:
        """Logs how the steps get the features of the source, and at level DEBUG each step."""
        for what, count in Counter(map(self._told, self.steps)).items():
            log.info("edit: %d of %d steps %s", count, len(self.steps), what)
        for step in self.steps:
            log.debug(
                "edit: step %d, t = %g: %s, %d sites",
                step.level.index,
                step.level.t,
                step.way,
                len(step.sites),
            )

    def _told(self, step: PlannedStep) -> str:
        """What the log says of a step: how it runs, and why the source is in its batch."""
        if step.way != "batched":
            return WAYS[step.way]
        if step.taps:
            return f"{WAYS[step.way]}, for the caller's own taps"
        # a step that injects nothing has the source in its batch only if all have
        if any(x.way == "batched" and not x.sites and not x.taps for x in self.steps):
            return f"{WAYS[step.way]}, as the caller has chosen"
        return f"{WAYS[step.way]}, since the features that they inject are not recorded"

    @property
    def replayed(self) -> list[Level]:
        """The levels of the steps that replay features recorded before the run, in order."""
        return [step.level for step in self.steps if step.way == "replayed"]


def plan_steps(
    levels: Sequence[Level],
    sites: Mapping[int, frozenset[str]],
    cached: Callable[[Level, frozenset[str]], bool],
    source_pass: SourcePass = "shared",
    active: Collection[int] = (),
) -> StepPlan:
    """Returns the plan of a run: decides for each of its steps how it gets the source's features.

    levels: all levels of the schedule, by index. sites: index of each step that is run, ascending
    -> names of the sites where it injects. cached: (level, sites) -> whether these features of the
    source are recorded, or will be. active: indices of the steps in which the caller's own taps are
    called; these steps are batched, so that the taps see the source.
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


def together(plans: Sequence[StepPlan]) -> StepPlan:
    """Returns a plan that reads of the source what any of these runs reads, for one inversion.

    It is no run itself, unless there is only one. The runs may have different numbers of steps.
    """
    if len(plans) == 1:
        return plans[0]
    levels = {level.identity: level for plan in plans for level in plan.source_levels}
    return StepPlan(tuple(PlannedStep(x, frozenset(), "batched", False) for x in levels.values()))


@dataclass(frozen=True)
class CachePlan:
    """Which features of a source will be recorded for an edit, and where they will be kept.

    All indices are those of steps of the edit, counted from the noisiest, 0.
    """

    levels: Mapping[int, Level]
    """Index of each step that injects something -> its noise level."""
    sites: Mapping[int, frozenset[str]]
    """Index of each step that injects something -> names of the sites (layers) where it does."""
    sizes: Mapping[int, int]
    """Index of each step that injects something -> bytes of all features that it injects."""
    placement: Mapping[int, Placement]
    """Index of each step whose features fit into memory -> where they will be kept ("device" or
    "host"). Features of other steps are not recorded."""
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
        """Returns a plan that records the features of as many steps as fit into memory.

        site_bytes: name of a site -> bytes of its features at one step. device, host: bytes that
        may be used there; the device is filled first. A step that does not fit costs one more
        branch, whatever its size, so the steps with the smallest features are placed first.
        compact: whether `site_bytes` are those of the smallest forms.
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
        """Returns the bytes of the features that will be kept in one place; None: in both."""
        return sum(self.sizes[i] for i, p in self.placement.items() if where in (None, p))

    def covers(self, level: Level, sites: frozenset[str]) -> bool:
        """Whether features of all these sites will be recorded at this level."""
        same = [i for i in self.placement if self.levels[i].identity == level.identity]
        return bool(same) and sites <= self.sites[same[0]]

    def placement_for(self, indices: Mapping[int, int]) -> dict[int, Placement]:
        """Returns `placement` with the indices of another run, such as an inversion, as its keys.

        indices: index of a step of this plan -> its index in the other run. Raises InputError if a
        step with a placement is missing there, because the other run does not visit its level.
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
        parts = [f"{size_text(on_device)} on the device"] if on_device else []
        parts += [f"{size_text(on_host)} in pinned host memory"] if on_host else []
        text = f"features: {len(self.placement)} of {len(self.sizes)} steps kept"
        text += f" ({form}): {', '.join(parts)}" if parts else ""
        rest = sum(self.sizes.values()) - self.bytes()
        if rest:
            text += f"; {size_text(rest)} are not, there the source is part of the batch"
        return text
