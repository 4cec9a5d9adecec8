"""DDIM sampling (arXiv 2010.02502).

The latents between the steps are float32, whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from anyv2v.diffusion.schedule import Schedule
from anyv2v.finite import FiniteCheck

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with the step's index in the schedule, its timestep, the latents."""

Predict = Callable[[int, int, Tensor], Tensor]
"""(index of the step, timestep t, latents) -> v, float32, in the latents' shape."""


def sample(
    predict: Predict,
    latents: Tensor,
    schedule: Schedule,
    steps: int,
    start: int = 0,
    on_step: OnStep | None = None,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Clean latents from those at the timestep of index `start` of a run of `steps`.

    NotFiniteError, if they are not finite after a step: what `check` makes of (index, timestep).
    """
    check = check or FiniteCheck()
    for i, t in enumerate(schedule.timesteps(steps)[start:], start):
        latents = schedule.step(predict(i, t, latents), t, latents, steps)
        check.look(latents, (i, t))
        if on_step is not None:
            on_step(i, t, latents)
    check.finish()
    return latents
