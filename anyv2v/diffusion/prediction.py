"""The deterministic sampling step for each kind of prediction: x_target = a * x + b * prediction.

Each function takes the level of x and the target level, where x = alpha * clean + sigma * noise,
and returns (a, b). If the prediction is exact, so is the step: x_target has the same clean latents
and the same noise, with the weights of the target level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class NoiseLevel(Protocol):
    """A noise level: the latents there are x = alpha * clean + sigma * noise."""

    @property
    def alpha(self) -> float:
        """Weight of the clean latents."""
        ...

    @property
    def sigma(self) -> float:
        """Weight of the noise."""
        ...


def velocity(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Returns (a, b) of the DDIM step x_target = a * x + b * v from `level` to `target`.

    The network predicts v = alpha * noise - sigma * clean (arXiv 2202.00512), and the levels must
    have alpha^2 + sigma^2 = 1. DDIM (arXiv 2010.02502) then rotates (x, v) by the angle between the
    levels, which is singular nowhere, not even where alpha is 0.
    """
    turn = math.atan2(level.sigma, level.alpha) - math.atan2(target.sigma, target.alpha)
    return math.cos(turn), -math.sin(turn)


def epsilon(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Returns (a, b) of the DDIM step x_target = a * x + b * noise from `level` to `target`.

    The network predicts the noise (arXiv 2006.11239); the step is eq. 12 of arXiv 2010.02502. The
    alpha of `level` must be above 0.
    """
    a = target.alpha / level.alpha
    return a, target.sigma - level.sigma * a


def flow(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Returns (a, b) of the Euler step x_target = a * x + b * u from `level` to `target`.

    The network predicts the velocity u = noise - clean (arXiv 2210.02747), and the levels must have
    alpha + sigma = 1.
    """
    return 1.0, target.sigma - level.sigma


PREDICTIONS: dict[str, Callable[[NoiseLevel, NoiseLevel], tuple[float, float]]] = {
    "v": velocity,
    "epsilon": epsilon,
    "flow": flow,
}
"""Name of what a network predicts -> the function that returns (a, b) of a step."""
