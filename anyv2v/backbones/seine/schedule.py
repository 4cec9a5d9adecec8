"""The noise schedules of SEINE: betas from 0.0001 to 0.02, for a prediction of the noise.

alpha-bar (the clean latents' share of the variance) is 0.9999 at t = 0 and 4.0e-5 at t = 999.
"""

from __future__ import annotations

import math

from anyv2v.diffusion.schedule import (
    Coefficients,
    Level,
    TableSchedule,
    linear_alphas_cumprod,
)

TRAIN_STEPS = 1000
"""Number of timesteps in training."""
OFFSET = 1
"""The least noisy timestep of an inversion, and of DDIM sampling."""


def ddim_schedule() -> TableSchedule:
    """Returns the schedule of inversions and of DDIM sampling, which adds no noise.

    50 steps visit the timesteps 981, 961, ..., 1. As in the original code, a run ends not at clean
    latents but at alpha-bar[0], 0.9999.
    """
    alphas_cumprod = linear_alphas_cumprod(0.0001, 0.02, TRAIN_STEPS)
    return TableSchedule(alphas_cumprod, "epsilon", OFFSET, end=None)


class DDPMSchedule:
    """DDPM sampling (arXiv 2006.11239, algorithm 2) with the variance of the posterior.

    In the original code its timesteps lie one below those of the inversion: 980, 960, ..., 0 for 50
    steps. The network is asked about t, but the source's latents are those of t + 1. A run ends at
    clean latents. The class implements `NoiseSchedule`.
    """

    def __init__(self, inversion: TableSchedule):
        """Takes the schedule of the inversion, whose table of alpha-bar it shares."""
        self._inversion = inversion

    def levels(self, steps: int) -> tuple[Level, ...]:
        """Returns steps + 1 levels, the noisiest first, the last of them clean.

        Each but the last has the level of t + 1 as its `inversion_level`. Raises InputError unless
        steps is from 1 to 999.
        """
        *inverted, end = self._inversion.levels(steps)
        levels = [self._level(level) for level in inverted]
        return (*levels, Level(steps, end.t - OFFSET, 1.0, 0.0))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """Returns the step from `level` to `target`, which has to be less noisy.

        With alpha-bar a of the level, b of the target and beta = 1 - a / b, equation 7 of the paper
        gives the mean sqrt(b) beta / (1 - a) x0 + sqrt(a / b) (1 - b) / (1 - a) x and the variance
        (1 - b) / (1 - a) beta. With x0 = (x - sqrt(1 - a) epsilon) / sqrt(a) the mean becomes
        sqrt(b / a) (x - beta / sqrt(1 - a) epsilon), equation 11.
        """
        growth = target.alpha / level.alpha
        beta = 1 - growth**-2
        return Coefficients(
            growth,
            -growth * beta / level.sigma,
            target.sigma / level.sigma * math.sqrt(beta),
        )

    def _level(self, inverted: Level) -> Level:
        """The level one timestep below that of the inversion."""
        t = round(inverted.t) - OFFSET
        alpha_bar = self._inversion.alpha_bar(t)
        return Level(inverted.index, t, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), inverted)
