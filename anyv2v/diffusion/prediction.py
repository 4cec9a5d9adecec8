"""What a network predicts, as the step that it makes: x_target = a * x + b * prediction.

Each function takes two levels, where x = alpha * clean + sigma * noise, and returns (a, b) of the
deterministic one-step sampler between them. With any of them, a network that predicts exactly moves
x exactly along the line between its clean latents and its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class NoiseLevel(Protocol):
    """The weights of clean latents and noise at a level: x = alpha * clean + sigma * noise."""

    @property
    def alpha(self) -> float:
        """Weight of the clean latents."""
        ...

    @property
    def sigma(self) -> float:
        """Weight of the noise."""
        ...


def velocity(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Steps with v = alpha * noise - sigma * clean (arXiv 2202.00512), alpha^2 + sigma^2 = 1.

    DDIM (arXiv 2010.02502) then rotates (x, v) by the angle between the levels, which is singular
    nowhere, not even where alpha is 0.
    """
    turn = math.atan2(level.sigma, level.alpha) - math.atan2(target.sigma, target.alpha)
    return math.cos(turn), -math.sin(turn)


def epsilon(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Steps with the noise (arXiv 2006.11239), by DDIM (arXiv 2010.02502, eq. 12); alpha > 0."""
    a = target.alpha / level.alpha
    return a, target.sigma - level.sigma * a


def flow(level: NoiseLevel, target: NoiseLevel) -> tuple[float, float]:
    """Steps with noise - clean (arXiv 2210.02747), alpha + sigma = 1: a step of Euler's method."""
    return 1.0, target.sigma - level.sigma


PREDICTIONS: dict[str, Callable[[NoiseLevel, NoiseLevel], tuple[float, float]]] = {
    "v": velocity,
    "epsilon": epsilon,
    "flow": flow,
}
"""Name of what a network predicts -> the function that makes its steps."""
