"""The noise levels of Wan: a grid of steps that is shifted towards the noise."""

from __future__ import annotations

import numpy as np

from anyv2v import checks
from anyv2v.diffusion.prediction import flow
from anyv2v.diffusion.schedule import Coefficients, Level
from anyv2v.errors import InputError

TRAIN_STEPS = 1000
"""Timestep of pure noise: a level of sigma is called the timestep `TRAIN_STEPS` * sigma."""
NEARLY_NOISE = 1e-6
"""Weight of the clean latents at the first level, which would otherwise be none."""
SHIFTS = 0.01, 100.0
"""The least and the largest shift: with larger ones the second level would be above the first."""


class FlowSchedule:
    """Levels with alpha = 1 - sigma, between which Euler's method steps; see `NoiseSchedule`.

    A run of n steps takes n evenly spaced numbers u from 1 down, as if one more were to follow at
    1/1000, and visits sigma = s u / (1 + (s - 1) u); s is the shift. It ends with clean latents.
    These are the levels of Wan's own samplers, and of diffusers' `UniPCMultistepScheduler` with
    `use_flow_sigmas`. Its `FlowMatchEulerDiscreteScheduler` visits others.

    The network is told 1000 sigma without what follows the decimal point. In runs of 250 steps
    and more, several levels are told the same number, so that it does not identify a level.
    """

    def __init__(self, shift: float):
        """Takes the shift s: 1 spaces the levels evenly, and more spends more steps on noise.

        It is 5 for TI2V-5B. Raises InputError unless it is a number within `SHIFTS`.
        """
        least, most = SHIFTS
        if not least <= checks.finite("shift", shift) <= most:
            raise InputError(f"shift: {shift:g} is not in {least:g}..{most:g}")
        self.shift = float(shift)

    def levels(self, steps: int) -> tuple[Level, ...]:
        """Returns steps + 1 levels, the noisiest first, the last of them clean, at timestep 0.

        Every sigma is a float32 number. Raises InputError unless steps is from 1 to 1000.
        """
        steps = checks.whole("steps", steps, 1, TRAIN_STEPS)
        even = np.linspace(1, 1 / TRAIN_STEPS, steps + 1)[:-1]
        sigmas = self.shift * even / (1 + (self.shift - 1) * even)
        sigmas[0] -= NEARLY_NOISE
        # timesteps of float64, sigmas of float32, as in the original
        noisy = zip(
            (sigmas * TRAIN_STEPS).tolist(), sigmas.astype(np.float32).tolist(), strict=True
        )
        levels = [Level(i, int(t), 1 - sigma, sigma) for i, (t, sigma) in enumerate(noisy)]
        return (*levels, Level(steps, 0, 1.0, 0.0))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """Returns the step of Euler's method from `level` to `target`, which adds no noise."""
        return Coefficients(*flow(level, target))
