"""One prediction of a run: the branches of a batch, their hooks, and guidance.

`Forward` is `Editor.predict`: (latents, t, conditions, taps) -> what the network predicts, float32.
Latents that are sampled or inverted do not contain the pinned frames, the p first latent frames
that are never noised (p is 0 or 1); these are prepended for the network alone.
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
    """Returns all latent frames: `pinned` (n, c, p, h, w), which are never noised, then `latents`.

    latents: (n, c, f - p, h, w), the other frames; returned as they are if p is 0.
    """
    return torch.cat([pinned, latents], dim=2) if pinned.shape[2] else latents


def set_step(taps: Taps, step: int, steps: int, branches: int) -> Taps:
    """Sets the attributes that hooks of `taps` may read during a step, and returns `taps`.

    step: index of the step, 0 the noisiest, of `steps`. branches: branches in its batch.
    """
    taps.step, taps.steps, taps.branches = step, steps, branches
    return taps


def guided_predictor(
    forward: Forward,
    branches: Branches,
    pinned: Tensor,
    taps: Callable[[Level], Taps] = lambda level: NO_TAPS,
) -> Predict:
    """Returns a function that predicts one clip under guidance, with nothing injected.

    forward: `Editor.predict`, or the same captured in CUDA graphs. pinned: the latent frames that
    are never noised, (1, c, p, h, w); the function takes and returns latents without them. taps:
    noise level -> the hooks to call in the prediction there; by default none are called.
    """
    count, p = len(branches.conditions), pinned.shape[2]
    conditions = type(branches.conditions[0]).stack(branches.conditions, [0] * count)

    def predict(level: Level, latents: Tensor) -> Tensor:
        each = forward(prepend_pinned(pinned, latents), level.t, conditions, taps(level))
        return branches.combine(level, each[:, :, p:].split(1))

    return predict


class Recorder:
    """Records features during an inversion, at the levels and sites of a `CachePlan`.

    A fixed-point inversion predicts several times at a level. The last prediction there is that of
    the latents that are stored, so `commit` adds its features to `cache`, a `FeatureCache`, and
    those of earlier predictions are dropped.
    """

    def __init__(
        self,
        plan: CachePlan | None,
        indices: Mapping[int, int],
        caller: Taps | None,
        steps: int,
        branches: int,
    ):
        """Plans the hooks of an inversion of `steps`, whose batch has so many `branches`.

        plan: the features to record; None: none. indices: index of a step of the plan -> its index
        in the inversion's run. caller: hooks of the caller's own, called after the recording's in
        the steps in which they are active.
        """
        self._sites = {} if plan is None else {indices[i]: plan.sites[i] for i in plan.placement}
        self._compact = plan is not None and plan.compact
        self._caller, self._steps, self._branches = caller, steps, branches
        self._active = active_steps(caller, steps)
        self.cache = FeatureCache({} if plan is None else plan.placement_for(indices))
        self._last = Record(())

    def taps(self, level: Level) -> Taps:
        """Returns the hooks for the next prediction, at this level of the inversion."""
        records = level.index in self._sites
        sites = self._sites[level.index] if records else ()
        self._last = Record(sites, records and self._compact)
        if self._caller is None or level.index not in self._active:
            return self._last
        caller = set_step(self._caller, level.index, self._steps, self._branches)
        return Chain(self._last, caller)

    def commit(self, index: int) -> None:
        """Adds the features of the latest prediction to `cache`, as those of step `index`.

        index: position of the step in the inversion's run, 0 the noisiest.
        """
        self.cache.add(index, self._last.features)
        # frees the features on the device if the cache copied them to the host
        self._last = Record(())


@dataclass(frozen=True)
class SourceBranch:
    """The source as a branch of an edit's batch, from which features are injected."""

    conditions: Conditions
    """What the network is conditioned on for the source."""
    latents: Callable[[Level], Tensor]
    """Noise level of the edit -> the source's latents there, (1, c, f', h', w') float32, with the
    frames that are never noised, on the network's device."""
    index: Mapping[int, int]
    """Index of a step of the edit -> its index in the inversion's run, by which recorded features
    are found."""


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
    """Returns a function that predicts several edits under guidance, with the source injected.

    The function takes and returns latents (edits, c, f - p, h, w), without the pinned frames. The
    batch of a step, its injected sites and its hooks are those of `plan`: [source, if batched; the
    branches of the first edit; of the second; ...].

    forward: `Editor.predict`, or the same captured in CUDA graphs. branches: those of each edit.
    pinned: the latent frames of each edit that are never noised, (edits, c, p, h, w). playback:
    reads recorded features for the steps that replay them. taps: the caller's own hooks, called
    after the injection in the steps that the plan names. steps: number of steps in the schedule,
    which these hooks may read.
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
    """Returns the features at `sites`, recorded in a forward pass that ends at the last of them.

    forward: `Editor.predict`, or the same captured in CUDA graphs. latents: (1, c, f, h, w), all
    frames. t: timestep. compact: record the smallest form of each feature, see `Feature.record`; by
    default residuals, or queries and keys.
    """
    taps = Record(sites, compact, stop=True)
    with suppress(Recorded):
        forward(latents, t, conditions, taps)
    return taps.features
