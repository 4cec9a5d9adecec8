"""Sampling: from noisy latents to clean ones, one step of the schedule after another.

The latents between the steps are float32, whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from anyv2v.diffusion.schedule import Level, NoiseSchedule, advance
from anyv2v.runtime.finite import FiniteCheck

OnStep = Callable[[int, float, Tensor], None]
"""Called after each step with the step's index in the schedule, its timestep, the latents."""

AfterStep = Callable[[int, Tensor], Tensor | None]
"""(index of the step, latents after it) -> the latents to go on from; None: these."""

Predict = Callable[[Level, Tensor], Tensor]
"""(level, latents) -> what the network predicts of them, float32, in the latents' shape."""


def sample(
    predict: Predict,
    latents: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    start: int = 0,
    on_step: OnStep | None = None,
    check: FiniteCheck | None = None,
    after_step: AfterStep | None = None,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Clean latents from those at the level of index `start` of a run of `steps`.

    step_noise: index of a step -> the standard normal noise that it adds, asked of samplers that
    add some. NotFiniteError, if the latents are not finite after a step: what `check` makes of
    (index, timestep).
    """
    check = check or FiniteCheck()
    for level, target in pairwise(schedule.levels(steps)[start:]):
        by = schedule.coefficients(level, target)
        latents = advance(latents, predict(level, latents), by)
        if by.noise:
            latents = latents + by.noise * step_noise(level.index)
        check.look(latents, (level.index, level.t))
        if after_step is not None and (instead := after_step(level.index, latents)) is not None:
            latents = instead
        if on_step is not None:
            on_step(level.index, level.t, latents)
    check.finish()
    return latents
