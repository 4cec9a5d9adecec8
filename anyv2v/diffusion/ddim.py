"""DDIM (arXiv 2010.02502) with v-prediction (arXiv 2202.00512): one step, sampling, inversion.

All of it in float32, whatever the network computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from anyv2v.diffusion.schedule import Schedule

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with the step's index in the schedule, its timestep, the latents."""

Predict = Callable[[int, int, Tensor], Tensor]
"""(index of the step, timestep t, latents) -> v, float32, in the latents' shape."""


def ddim_step(latents: Tensor, v: Tensor, level: float, target: float) -> Tensor:
    """Moves latents from the noise level alpha-bar = `level` to `target`, without adding noise.

    A rotation of (x, v), so nothing is singular where alpha-bar is 0:
    x0 = sqrt(a) x - sqrt(1 - a) v, e = sqrt(a) v + sqrt(1 - a) x, x' = sqrt(b) x0 + sqrt(1 - b) e.
    Float32 in any case.
    """
    latents, v = latents.float(), v.float()
    clean = math.sqrt(level) * latents - math.sqrt(1 - level) * v
    noise = math.sqrt(level) * v + math.sqrt(1 - level) * latents
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise


def sample(
    predict: Predict,
    latents: Tensor,
    schedule: Schedule,
    steps: int,
    start: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean latents from those at the timestep of index `start` of a run of `steps`."""
    for i, t in enumerate(schedule.timesteps(steps)[start:], start):
        latents = schedule.step(predict(i, t, latents), t, latents, steps)
        if on_step is not None:
            on_step(i, t, latents)
    return latents


def invert(
    predict: Predict,
    latents: Tensor,
    schedule: Schedule,
    steps: int,
    on_step: OnStep | None = None,
) -> dict[int, Tensor]:
    """Latents at every timestep of a run of `steps` from the clean ones, which are kept under 0."""
    kept = {0: latents.float()}
    for i, t in enumerate(reversed(schedule.timesteps(steps))):
        latents = schedule.inverse_step(predict(i, t, latents), t, latents, steps)
        kept[t] = latents
        if on_step is not None:
            on_step(i, t, latents)
    return kept
