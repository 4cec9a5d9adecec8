"""One prediction of a run: from the branches' network outputs to what a sampler steps with.

`Forward` is `Editor.predict`: (latents, t, conditions, taps) -> what the network predicts, float32.
Latents that are sampled or inverted do not contain the pinned frames; these are prepended for the
network alone.
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
from anyv2v.injection.feature_cache import FeatureCache, Playback
from anyv2v.injection.taps import (
    NO_TAPS,
    Chain,
    Features,
    Record,
    Recorded,
    Replay,
    ShareSource,
    Taps,
    active_steps,
)
from anyv2v.pipeline.cuda_graphs import Forward
from anyv2v.pipeline.step_plan import CachePlan, StepPlan


def prepend_pinned(pinned: Tensor, latents: Tensor) -> Tensor:
    """All latent frames: the pinned ones (n, c, p, h, w), then the others."""
    return torch.cat([pinned, latents], dim=2) if pinned.shape[2] else latents


def set_step(taps: Taps, step: int, steps: int, branches: int) -> Taps:
    """Sets the attributes that taps read during a step, and returns the taps."""
    taps.step, taps.steps, taps.branches = step, steps, branches
    return taps


def guided_predictor(
    forward: Forward,
    branches: Branches,
    pinned: Tensor,
    taps: Callable[[Level], Taps] = lambda level: NO_TAPS,
) -> Predict:
    """Makes the predictions of one clip under guidance, with nothing injected.

    taps: level -> the taps of the prediction there.
    """
    count, p = len(branches.conditions), pinned.shape[2]
    conditions = type(branches.conditions[0]).stack(branches.conditions, [0] * count)

    def predict(level: Level, latents: Tensor) -> Tensor:
        each = forward(prepend_pinned(pinned, latents), level.t, conditions, taps(level))
        return branches.combine(level, each[:, :, p:].split(1))

    return predict


class Recorder:
    """Records features during an inversion, at the levels and sites of a `CachePlan`.

    A fixed point predicts several times at a level. The features of its last prediction there are
    those of the stored latents, so `commit` takes them into the cache and drops the earlier ones.
    """

    def __init__(
        self,
        plan: CachePlan | None,
        indices: Mapping[int, int],
        caller: Taps | None,
        steps: int,
        branches: int,
    ):
        """Plans the hooks of a run of `steps`, whose batch has so many branches.

        indices: index of a step of the plan -> its index in the inversion's run. caller: taps of
        the caller's own, called after the recording's.
        """
        self._sites = {} if plan is None else {indices[i]: plan.sites[i] for i in plan.placement}
        self._compact = plan is not None and plan.compact
        self._caller, self._steps, self._branches = caller, steps, branches
        self._active = active_steps(caller, steps)
        self.cache = FeatureCache({} if plan is None else plan.placement_for(indices))
        self._last = Record(())

    def taps(self, level: Level) -> Taps:
        """The taps of the next prediction, at a level."""
        records = level.index in self._sites
        sites = self._sites[level.index] if records else ()
        self._last = Record(sites, records and self._compact)
        if self._caller is None or level.index not in self._active:
            return self._last
        caller = set_step(self._caller, level.index, self._steps, self._branches)
        return Chain(self._last, caller)

    def commit(self, index: int) -> None:
        """Adds the features of the last prediction to the cache, as those of step `index`."""
        self.cache.add(index, self._last.features)
        # frees the features on the device if the cache copied them to the host
        self._last = Record(())


@dataclass(frozen=True)
class SourceBranch:
    """The source's own branch in an edit."""

    conditions: Conditions
    latents: Callable[[Level], Tensor]
    """Level -> the source's latents there, all frames, on the device."""
    index: Mapping[int, int]
    """Index of a step of the edit -> its index in the inversion's run, the key of its features."""


def injecting_predictor(
    forward: Forward,
    branches: Sequence[Branches],
    pinned: Tensor,
    source: SourceBranch,
    plan: StepPlan,
    playback: Playback,
    taps: Taps | None = None,
    steps: int = 0,
) -> Predict:
    """Makes the predictions of several edits under guidance, with the source's features injected.

    Latents are (edits, c, f, h, w); branches of the batch [source |] those of the first edit | of
    the second | ... Each step runs as `plan` says. taps: the caller's own, called after the
    injection's in the steps that the plan names.
    """
    stack = type(source.conditions).stack
    flat = [conditions for edit in branches for conditions in edit.conditions]
    counts = [len(edit.conditions) for edit in branches]
    samples = [sample for sample, count in enumerate(counts) for _ in range(count)]
    edited = stack(flat, samples)
    with_source = stack([source.conditions, *flat], [0, *(sample + 1 for sample in samples)])
    p = pinned.shape[2]

    def combine(level: Level, predicted: Tensor) -> Tensor:
        each = predicted[:, :, p:].split(counts)
        pairs = zip(branches, each, strict=True)
        return torch.cat([edit.combine(level, x.split(1)) for edit, x in pairs])

    def predict(level: Level, latents: Tensor) -> Tensor:
        step, t, latents = plan.at(level.index), level.t, prepend_pinned(pinned, latents)
        if step.way == "plain":
            return combine(level, forward(latents, t, edited))
        if step.way == "batched":
            total = 1 + len(flat)
            own: Taps = ShareSource(step.sites, total)
            if step.taps and taps is not None:
                own = Chain(own, set_step(taps, level.index, steps, total))
            batch = torch.cat([source.latents(level), latents])
            # the source's own prediction is not needed: its latents come from the trajectory
            return combine(level, forward(batch, t, with_source, own)[1:])
        if step.way == "separate":
            features = record_features(
                forward, source.latents(level), t, source.conditions, step.sites
            )
        else:
            features = playback.fetch(source.index[level.index])
        # more sites may have been recorded than this edit injects
        features = {site: x for site, x in features.items() if site in step.sites}
        return combine(level, forward(latents, t, edited, Replay(features)))

    return predict


def record_features(
    forward: Forward,
    latents: Tensor,
    t: float,
    conditions: Conditions,
    sites: frozenset[str],
    compact: bool = False,
) -> Features:
    """Records the features at `sites` in one forward pass, which ends at the last of them."""
    taps = Record(sites, compact, stop=True)
    with suppress(Recorded):
        forward(latents, t, conditions, taps)
    return taps.features
