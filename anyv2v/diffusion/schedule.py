"""Noise levels: which of them a run visits, and how a sampler steps between two.

At a level the latents are x = alpha * clean + sigma * noise. Everything that differs between noise
schedules, parametrizations and one-step samplers is behind `NoiseSchedule`: sampling and inversion
know nothing else of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from anyv2v import checks
from anyv2v.diffusion.prediction import PREDICTIONS


@dataclass(frozen=True)
class Level:
    """One noise level of a run."""

    index: int
    """Its place in the run, 0 for the noisiest."""
    t: float
    """What the network is told: a whole number, or a fraction, as the network was trained."""
    alpha: float
    sigma: float
    source: Level | None = None
    """The level of an inversion that stands for this one, where a run reads its source; None: the
    same level. Of a sampler whose levels are not those of the inversion."""

    @property
    def noise(self) -> tuple[float, float, float]:
        """What levels of two runs have in common if they are the same level, or stand for it.

        (t, alpha, sigma) to 9 digits: a level may come out of the arithmetic of another number of
        steps, or of another machine, with another last bit.
        """
        level = self.source or self
        return tuple(float(f"{x:.9g}") for x in (level.t, level.alpha, level.sigma))


class Coefficients(NamedTuple):
    """A step of a sampler: x_target = a * x + b * prediction + noise * z, z standard normal."""

    a: float
    b: float
    noise: float = 0.0


class NoiseSchedule(Protocol):
    """The levels of a run, and the steps between them."""

    def levels(self, steps: int) -> Sequence[Level]:
        """The levels of a run of `steps`, the noisiest first, and the one where it ends.

        steps + 1 in all. InputError for a number of steps that there is not.
        """

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """The step from a level to another, less noisy or noisier."""


class TableSchedule:
    """A schedule of `len(alphas_cumprod)` whole timesteps, and deterministic steps (DDIM).

    alpha-bar[t] is how much of the clean latents' variance is left at timestep t: alpha is its
    root, sigma the root of the rest.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: str, offset: int = 0):
        """alphas_cumprod: float32 (train_steps,). prediction: one of `PREDICTIONS`, what the
        network predicts. offset: the least noisy timestep of every run.
        """
        checks.one_of("prediction", prediction, tuple(PREDICTIONS))
        self.alphas_cumprod, self.offset = alphas_cumprod, offset
        self.train_steps = len(alphas_cumprod)
        self._coefficients = PREDICTIONS[prediction]
        self._alpha_bars: list[float] = alphas_cumprod.tolist()

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of a run, the noisiest first: with offset 1, 981, 961, ..., 1 for 50."""
        stride = self._stride(steps)
        return [i * stride + self.offset for i in reversed(range(steps))]

    def levels(self, steps: int) -> tuple[Level, ...]:
        timesteps = self.timesteps(steps)
        timesteps.append(timesteps[-1] - self._stride(steps))
        return tuple(self._level(t, i) for i, t in enumerate(timesteps))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        return Coefficients(*self._coefficients(level, target))

    def alpha_bar(self, t: int) -> float:
        """alpha-bar[t]; 1 for the clean latents, which lie before t = 0."""
        return self._alpha_bars[t] if t >= 0 else 1.0

    def step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """The DDIM step of a run of `steps` from timestep t to the next less noisy one."""
        level, target = self._level(t), self._level(t - self._stride(steps))
        return advance(latents, prediction, self.coefficients(level, target))

    def inverse_step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """From the level below t up to t, as plain DDIM inversion does (arXiv 2105.05233, app. F).

        `prediction` is what the network says of `latents`, which are still at the level below, when
        it is asked about t: the approximation that makes this inversion inexact.
        """
        level, target = self._level(t - self._stride(steps)), self._level(t)
        return advance(latents, prediction, self.coefficients(level, target))

    def _stride(self, steps: int) -> int:
        return self.train_steps // checks.whole("steps", steps, 1, self.train_steps - self.offset)

    def _level(self, t: int, index: int = 0) -> Level:
        left = self.alpha_bar(t)
        return Level(index, t, math.sqrt(left), math.sqrt(1 - left))


def advance(latents: Tensor, prediction: Tensor, by: Coefficients) -> Tensor:
    """One step of a sampler without its noise, float32 in any case."""
    return by.a * latents.float() + by.b * prediction.float()


def matches(levels: Sequence[Level], others: Sequence[Level]) -> dict[int, int]:
    """Index of each level that is among `others` too -> its index there."""
    there = {level.noise: level.index for level in others}
    return {x.index: there[x.noise] for x in levels if x.noise in there}


def steps_within(schedule: NoiseSchedule, levels: Collection[Level]) -> list[int]:
    """The numbers of steps whose runs visit none but these levels before they end."""
    known = {level.noise for level in levels}

    def fits(steps: int) -> bool:
        return all(level.noise in known for level in schedule.levels(steps)[:-1])

    return [n for n in range(1, len(known) + 1) if fits(n)]
