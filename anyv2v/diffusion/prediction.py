"""What a network predicts, as the step that it makes: x_target = a * x + b * prediction.

Each function takes two levels, with x = alpha * clean + sigma * noise, and gives (a, b) of the
deterministic one-step sampler between them. For all of them a network that predicts exactly moves
exactly along the line between its clean latents and its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class Noise(Protocol):
    alpha: float
    sigma: float


def velocity(level: Noise, target: Noise) -> tuple[float, float]:
    """v = alpha * noise - sigma * clean (arXiv 2202.00512), where alpha^2 + sigma^2 = 1.

    DDIM (arXiv 2010.02502) then turns (x, v) by the angle between the levels, which is singular
    nowhere, not even where alpha is 0.
    """
    turn = math.atan2(level.sigma, level.alpha) - math.atan2(target.sigma, target.alpha)
    return math.cos(turn), -math.sin(turn)


def epsilon(level: Noise, target: Noise) -> tuple[float, float]:
    """The noise (arXiv 2006.11239), stepped by DDIM (arXiv 2010.02502, eq. 12); alpha is not 0."""
    a = target.alpha / level.alpha
    return a, target.sigma - level.sigma * a


def flow(level: Noise, target: Noise) -> tuple[float, float]:
    """noise - clean (arXiv 2210.02747), where alpha + sigma = 1: a step of Euler's method."""
    return 1.0, target.sigma - level.sigma


PREDICTIONS: dict[str, Callable[[Noise, Noise], tuple[float, float]]] = {
    "v": velocity,
    "epsilon": epsilon,
    "flow": flow,
}
"""Name of what a network predicts -> its steps."""
