"""How an inversion begins on Wan's noise levels, where the cleanest steps cannot be solved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from anyv2v.diffusion.inversion import InversionState
from anyv2v.diffusion.samplers import Predict, sample
from anyv2v.diffusion.schedule import Level, NoiseSchedule
from anyv2v.runtime.finite import FiniteCheck

SOLVED_FROM = 0.17
"""The sigma up to which noise is added: 0.176 in the default 50 steps, the level two steps above
the clean latents. Solving the step to a level contracts there by 0.3; see bench/README.md."""
SEED = 0
"""The seed of the noise. Every inversion adds the same, so that it can be repeated."""


def noised(
    predict: Predict,
    state: InversionState,
    schedule: NoiseSchedule,
    steps: int,
    check: FiniteCheck | None = None,
    sigma: float = SOLVED_FROM,
    noise: Tensor | None = None,
) -> InversionState:
    """Returns the state from which `fixed_point` solves only the steps where it converges.

    The last steps of sampling take away all noise, so that many latents lead to the same clean
    ones, and solving for those that do amplifies what the network does not know. Therefore the
    clean latents of `state`, the start of an inversion in `steps`, are mixed with standard normal
    `noise` (None draws it) as at the cleanest level with at least this `sigma`. The latents of the
    levels below are those that sampling computes from there, at one evaluation each. What sampling
    misses in the end is the `offset` of the result. Raises NotFiniteError, worded by `check`, for
    latents that are not finite.
    """
    begun: list[tuple[Level, Tensor, Tensor]] = []

    def told(level: Level, latents: Tensor) -> Tensor:
        begun.append((level, latents, predict(level, latents).float()))
        return begun[-1][2]

    if noise is None:
        noise = torch.randn(state.clean.shape, generator=torch.Generator().manual_seed(SEED))
    first = [level for level in schedule.levels(steps) if level.sigma >= sigma][-1]
    latents = first.alpha * state.clean + first.sigma * noise.to(state.clean)
    end = sample(told, latents, schedule, steps, first.index, check=check)
    return replace(
        state,
        latents=latents,
        trajectory={level.index: x for level, x, _ in reversed(begun)},
        evaluations=len(begun),
        predictions=tuple(prediction for _, _, prediction in begun[1::-1]),
        offset=state.clean - end,
    )
