"""From the network to the prediction of a step: its branches, and the source's features in them.

`forward` is `Editor.predict`: (latents, t, conditions, taps) -> v, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from anyv2v.backbones.base import Branches, Conditions
from anyv2v.diffusion.ddim import Predict
from anyv2v.edit import SourcePass
from anyv2v.graphs import Forward
from anyv2v.injection.features import Kept, Playback
from anyv2v.injection.taps import NO_TAPS, Record, Recorded, Replay, ShareSource, Taps
from anyv2v.source import Source


def guided(
    forward: Forward, branches: Branches, taps: Callable[[int], Taps] = lambda t: NO_TAPS
) -> Predict:
    """Predictions under guidance, nothing injected; `taps`: what looks on at a timestep."""
    rows = len(branches.conditions)
    conditions = type(branches.conditions[0]).stack(branches.conditions, [0] * rows)

    def predict(i: int, t: int, latents: Tensor) -> Tensor:
        return branches.combine(forward(latents, t, conditions, taps(t)).split(1))

    return predict


@dataclass(frozen=True)
class SourceAt:
    """Which features of a source a run injects, and where it takes them from."""

    source: Source
    conditions: Conditions
    """What the source's branch is steered by."""
    plan: Mapping[int, frozenset[str]]
    """Index of a step -> sites."""
    source_pass: SourcePass
    replayed: Collection[int]
    """Timesteps at which they were recorded."""
    order: Sequence[str]
    """All sites, as a prediction comes to them."""


def injected(
    forward: Forward, branches: Sequence[Branches], at: SourceAt, playback: Playback
) -> Predict:
    """Predictions of several edits under guidance, (edits, c, f, h, w), with the source's features.

    Rows of a batch: [source |] branches of the first edit | of the second | ...
    """
    stack = type(at.conditions).stack
    flat = [conditions for edit in branches for conditions in edit.conditions]
    counts = [len(edit.conditions) for edit in branches]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    edited = stack(flat, rows)
    together = stack([at.conditions, *flat], [0, *(row + 1 for row in rows)])

    def combine(v: Tensor) -> Tensor:
        # the source's row comes first, if it is there
        each = v[v.shape[0] - len(rows) :].split(counts)
        pairs = zip(branches, each, strict=True)
        return torch.cat([edit.combine(v.split(1)) for edit, v in pairs])

    def predict(i: int, t: int, latents: Tensor) -> Tensor:
        sites = at.plan[i]
        if not sites and at.source_pass != "always":
            return combine(forward(latents, t, edited))
        if t in at.replayed:
            kept = {site: x for site, x in playback[t].items() if site in sites}
            return combine(forward(latents, t, edited, Replay(kept)))
        source_latents = at.source.trajectory[t].to(latents.device)
        if at.source_pass == "separate":
            kept = recorded(forward, source_latents, t, at.conditions, sites)
            return combine(forward(latents, t, edited, Replay(kept)))
        taps = ShareSource(sites, 1 + len(rows))
        return combine(forward(torch.cat([source_latents, latents]), t, together, taps))

    return predict


def recorded(
    forward: Forward,
    latents: Tensor,
    t: int,
    conditions: Conditions,
    sites: frozenset[str],
    compact: bool = False,
) -> Kept:
    """What passes at `sites`, of a prediction that ends at the last of them."""
    taps = Record(sites, compact, stop=True)
    with suppress(Recorded):
        forward(latents, t, conditions, taps)
    return taps.kept
