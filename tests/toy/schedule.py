"""The toy's noise levels: fractions, close together where there is most noise, and its samplers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anyv2v import checks
from anyv2v.diffusion.prediction import flow
from anyv2v.diffusion.schedule import Coefficients, Level

TOLD = 10.0
"""What the network is told of a level is this times sigma: of ten steps four round to 10."""
SHIFT = 8.0
"""By how much a run's even steps are moved to the noise (arXiv 2403.03206, eq. 23)."""
MOST_STEPS = 1000


@dataclass(frozen=True)
class Flow:
    """Levels alpha + sigma = 1, and a step between two of them.

    `ancestral`: all that a step can add of noise is added (eta = 1), and taken off beforehand.
    """

    ancestral: bool = False

    def levels(self, steps: int) -> tuple[Level, ...]:
        steps = checks.whole("steps", steps, 1, MOST_STEPS)
        sigmas = [_shifted((steps - i) / steps) for i in range(steps + 1)]
        return tuple(Level(i, TOLD * s, 1 - s, s) for i, s in enumerate(sigmas))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        if not self.ancestral:
            return Coefficients(*flow(level, target))
        # a step to less noise than there is to be, and as much of it back as then is missing
        below = target.sigma**2 / level.sigma
        kept = target.alpha / (1 - below)
        missing = math.sqrt(max(target.sigma**2 - (kept * below) ** 2, 0.0))
        return Coefficients(kept, kept * (below - level.sigma), missing)


def _shifted(u: float) -> float:
    return SHIFT * u / (1 + (SHIFT - 1) * u)
