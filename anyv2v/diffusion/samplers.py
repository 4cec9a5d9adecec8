"""Sampling: from noisy latents to clean ones, one step of the schedule after another.

Latents between the steps are float32, whatever dtype the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import Tensor

from anyv2v.diffusion.schedule import Level, NoiseSchedule, advance
from anyv2v.runtime.finite import FiniteCheck

OnStep = Callable[[int, float, Tensor], None]
"""Called after each step with (index of the step, timestep before the step, latents after it)."""

AfterStep = Callable[[int, Tensor], Tensor | None]
"""Called after each step with (index of the step, latents after it); returns the latents to go on
with, or None to keep those that it was given."""

Predict = Callable[[Level, Tensor], Tensor]
"""(level, latents) -> the guided prediction for these latents, float32 in their shape."""


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
    offsets: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Samples clean latents from `latents` at the level of index `start` in a run of `steps`.

    start: index of the first step, counted from the noisiest, 0. after_step is called before
    on_step. step_noise: index of a step -> standard normal noise of the latents' shape; only
    samplers that add noise need it. offsets: index of a step -> what is added after it. Returns
    float32 latents. Raises NotFiniteError if latents are not finite after a step; `check` words its
    message, given (index, timestep), and None words it plainly.
    """
    check = check or FiniteCheck()
    for level, target in pairwise(schedule.levels(steps)[start:]):
        coefficients = schedule.coefficients(level, target)
        latents = advance(latents, predict(level, latents), coefficients)
        if coefficients.noise:
            assert step_noise is not None, "a sampler that adds noise needs `step_noise`"
            latents = latents + coefficients.noise * step_noise(level.index)
        if offsets and level.index in offsets:
            latents = latents + offsets[level.index]
        check.look(latents, (level.index, level.t))
        if after_step is not None and (replaced := after_step(level.index, latents)) is not None:
            latents = replaced
        if on_step is not None:
            on_step(level.index, level.t, latents)
    check.finish()
    return latents
