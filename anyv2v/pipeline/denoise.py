"""From the network to the prediction of a step: its branches, and the source's features in them.

`forward` is `Editor.predict`: (latents, t, conditions, taps) -> what the network predicts, float32.
Latents that are sampled or inverted are without the pinned frames, which are put in front of them
for the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from anyv2v.backbones.base import Branches, Conditions
from anyv2v.diffusion.samplers import Predict
from anyv2v.diffusion.schedule import Level
from anyv2v.injection.feature_cache import FeatureCache, Kept, Playback
from anyv2v.injection.taps import (
    NO_TAPS,
    Chain,
    Record,
    Recorded,
    Replay,
    ShareSource,
    Taps,
    active_steps,
)
from anyv2v.pipeline.cuda_graphs import Forward
from anyv2v.pipeline.step_plan import CachePlan, StepPlan


def pinned_first(pinned: Tensor, latents: Tensor) -> Tensor:
    """All latent frames: the pinned ones (n, c, p, h, w), then the others."""
    return torch.cat([pinned, latents], dim=2) if pinned.shape[2] else latents


def tell(taps: Taps, step: int, steps: int, branches: int) -> Taps:
    """The taps, who now know where they are."""
    taps.step, taps.steps, taps.branches = step, steps, branches
    return taps


def guided(
    forward: Forward,
    branches: Branches,
    pinned: Tensor,
    taps: Callable[[Level], Taps] = lambda level: NO_TAPS,
) -> Predict:
    """Predictions under guidance, nothing injected; `taps`: what looks on at a level."""
    count, p = len(branches.conditions), pinned.shape[2]
    conditions = type(branches.conditions[0]).stack(branches.conditions, [0] * count)

    def predict(level: Level, latents: Tensor) -> Tensor:
        each = forward(pinned_first(pinned, latents), level.t, conditions, taps(level))
        return branches.combine(level, each[:, :, p:].split(1))

    return predict


class Recorder:
    """Records at the levels of a plan what the last prediction there passed."""

    def __init__(
        self,
        plan: CachePlan | None,
        indices: Mapping[int, int],
        caller: Taps | None,
        steps: int,
        branches: int,
    ):
        """indices: of the plan's steps in the inversion's run. caller: the caller's own taps, which
        look on too, in a run of so many steps.
        """
        self._sites = {} if plan is None else {indices[i]: plan.sites[i] for i in plan.places}
        self._compact = plan is not None and plan.compact
        self._caller, self._steps, self._branches = caller, steps, branches
        self._active = active_steps(caller, steps)
        self.cache = FeatureCache({} if plan is None else plan.placed(indices))
        self._last = Record(())

    def taps(self, level: Level) -> Taps:
        """For the next prediction at a level."""
        wanted = level.index in self._sites
        sites = self._sites[level.index] if wanted else ()
        self._last = Record(sites, wanted and self._compact)
        if level.index not in self._active:
            return self._last
        return Chain(self._last, tell(self._caller, level.index, self._steps, self._branches))

    def settle(self, index: int) -> None:
        """The last prediction at a level was the one that counts."""
        self.cache.add(index, self._last.kept)
        self._last = Record(())


@dataclass(frozen=True)
class SourceBranch:
    """The source's own branch in an edit."""

    conditions: Conditions
    latents: Callable[[Level], Tensor]
    """All of its frames at a level, on the device."""
    index: Mapping[int, int]
    """Of a step of the run, in the inversion's run: the key of its features."""


def injected(
    forward: Forward,
    branches: Sequence[Branches],
    pinned: Tensor,
    source: SourceBranch,
    plan: StepPlan,
    playback: Playback,
    taps: Taps | None = None,
    steps: int = 0,
) -> Predict:
    """Predictions of several edits under guidance, (edits, c, f, h, w), with the source's features.

    Branches of a batch: [source |] those of the first edit | of the second | ... `taps`: the
    caller's own, called after the injection's in the steps that the plan says.
    """
    stack = type(source.conditions).stack
    flat = [conditions for edit in branches for conditions in edit.conditions]
    counts = [len(edit.conditions) for edit in branches]
    samples = [sample for sample, count in enumerate(counts) for _ in range(count)]
    edited = stack(flat, samples)
    together = stack([source.conditions, *flat], [0, *(sample + 1 for sample in samples)])
    p = pinned.shape[2]

    def combine(level: Level, predicted: Tensor) -> Tensor:
        each = predicted[:, :, p:].split(counts)
        pairs = zip(branches, each, strict=True)
        return torch.cat([edit.combine(level, x.split(1)) for edit, x in pairs])

    def predict(level: Level, latents: Tensor) -> Tensor:
        step, t, latents = plan.at(level.index), level.t, pinned_first(pinned, latents)
        if step.way == "plain":
            return combine(level, forward(latents, t, edited))
        if step.way == "batched":
            total = 1 + len(flat)
            own: Taps = ShareSource(step.sites, total)
            if step.taps:
                own = Chain(own, tell(taps, level.index, steps, total))
            batch = torch.cat([source.latents(level), latents])
            return combine(level, forward(batch, t, together, own)[1:])
        if step.way == "separate":
            kept = recorded(forward, source.latents(level), t, source.conditions, step.sites)
        else:
            kept = playback.fetch(source.index[level.index])
        kept = {site: x for site, x in kept.items() if site in step.sites}
        return combine(level, forward(latents, t, edited, Replay(kept)))

    return predict


def recorded(
    forward: Forward,
    latents: Tensor,
    t: float,
    conditions: Conditions,
    sites: frozenset[str],
    compact: bool = False,
) -> Kept:
    """What passes at `sites`, of a prediction that ends at the last of them."""
    taps = Record(sites, compact, stop=True)
    with suppress(Recorded):
        forward(latents, t, conditions, taps)
    return taps.kept
