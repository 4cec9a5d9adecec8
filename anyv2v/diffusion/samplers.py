"""Sampling: from noisy latents to clean ones, one step of the schedule after another.

Latents between the steps are float32, whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from anyv2v.diffusion.schedule import Level, NoiseSchedule, advance
from anyv2v.runtime.finite import FiniteCheck

OnStep = Callable[[int, float, Tensor], None]
"""Called after each step with (index of the step, its timestep, latents after it)."""

AfterStep = Callable[[int, Tensor], Tensor | None]
"""(index of the step, latents after it) -> the latents to go on with; None keeps them."""

Predict = Callable[[Level, Tensor], Tensor]
"""(level, latents) -> what the network predicts for them, float32, the shape of the latents."""


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
    """Samples clean latents, from latents at the level of index `start` of a run of `steps`.

    step_noise: index of a step -> standard normal noise of the latents' shape; needed by samplers
    that add noise. NotFiniteError if latents are not finite after a step; `check` makes its message
    of (index, timestep).
    """
    check = check or FiniteCheck()
    for level, target in pairwise(schedule.levels(steps)[start:]):
        coefficients = schedule.coefficients(level, target)
        latents = advance(latents, predict(level, latents), coefficients)
        if coefficients.noise:
            assert step_noise is not None, "a sampler that adds noise needs `step_noise`"
            latents = latents + coefficients.noise * step_noise(level.index)
        check.look(latents, (level.index, level.t))
        if after_step is not None and (replaced := after_step(level.index, latents)) is not None:
            latents = replaced
        if on_step is not None:
            on_step(level.index, level.t, latents)
    check.finish()
    return latents
