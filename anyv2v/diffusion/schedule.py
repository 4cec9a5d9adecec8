"""Noise levels: which of them a run visits, and how a sampler steps between two.

At a level the latents are x = alpha * clean + sigma * noise. Everything that differs between noise
schedules, parametrizations and one-step samplers is behind `NoiseSchedule`, the only part of them
that sampling and inversion use.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.diffusion.prediction import PREDICTIONS


@dataclass(frozen=True)
class Level:
    """One noise level of a run, where the latents are x = alpha * clean + sigma * noise."""

    index: int
    """Position of the level in the run; 0 is the noisiest."""
    t: float
    """The timestep that the network is given: a whole number or a fraction, as in its training."""
    alpha: float
    """Weight of the clean latents."""
    sigma: float
    """Weight of the noise."""
    inversion_level: Level | None = None
    """The level of the inversion whose latents of the source an edit reads here; None: this level
    itself. Samplers whose levels differ from those of the inversion set it."""

    @property
    def identity(self) -> tuple[float, float, float]:
        """(t, alpha, sigma), by which the same level is recognized in two runs.

        The values are rounded to 9 digits, because another number of steps or another machine may
        compute them with another last bit. If there is an `inversion_level`, they are its values.
        """
        level = self.inversion_level or self
        t, alpha, sigma = (float(f"{x:.9g}") for x in (level.t, level.alpha, level.sigma))
        return t, alpha, sigma


class Coefficients(NamedTuple):
    """One step of a sampler, x_target = a * x + b * prediction + noise * z, with z standard normal.

    A step whose `noise` is 0 is deterministic.
    """

    a: float
    """Factor of the latents x."""
    b: float
    """Factor of the prediction."""
    noise: float = 0.0
    """Standard deviation of the noise that the step adds."""


class NoiseSchedule(Protocol):
    """The noise levels that a run visits, and the steps between them."""

    def levels(self, steps: int) -> Sequence[Level]:
        """Returns the steps + 1 levels of a run of `steps`, the noisiest first.

        The network is called at all levels but the last, where the run ends. Raises InputError if
        the schedule allows no run of so many steps.
        """
        ...

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """Returns the step from `level` to `target`, which may be noisier or less noisy."""
        ...


class TableSchedule:
    """A noise schedule given by a table of alpha-bar, with deterministic steps.

    alpha-bar[t] is the share of the clean latents in the variance at timestep t, a whole number
    below `train_steps`: alpha is its square root, and sigma the square root of 1 - alpha-bar[t].
    """

    def __init__(
        self, alphas_cumprod: Tensor, prediction: str, offset: int = 0, end: float | None = 1.0
    ):
        """Takes alpha-bar as `alphas_cumprod`, float32 (train_steps,), from clean to noisy.

        prediction: what the network predicts, "v", "epsilon" or "flow" (`PREDICTIONS`). offset: the
        least noisy timestep of every run. end: alpha-bar of the level below timestep 0, where a run
        ends; None takes that of timestep 0. Raises InputError for another prediction.
        """
        checks.one_of("prediction", prediction, tuple(PREDICTIONS))
        self.alphas_cumprod, self.offset = alphas_cumprod, offset
        self.train_steps = len(alphas_cumprod)
        self._coefficients = PREDICTIONS[prediction]
        self._alpha_bars: list[float] = alphas_cumprod.tolist()
        self._end = self._alpha_bars[0] if end is None else end

    def timesteps(self, steps: int) -> list[int]:
        """Returns the timesteps of a run of `steps`, the noisiest first.

        They are evenly spaced: with 1000 training steps and offset 1, 50 steps visit 981, 961, ...,
        1. Raises InputError unless steps is from 1 to `train_steps` - `offset`.
        """
        stride = self._stride(steps)
        return [i * stride + self.offset for i in reversed(range(steps))]

    def levels(self, steps: int) -> tuple[Level, ...]:
        """Returns steps + 1 levels: those of the timesteps of a run, noisiest first, and its end.

        The end lies one stride (`train_steps` // steps) below the last timestep; below timestep 0
        it has the alpha-bar `end`, 1 for clean latents. Raises InputError unless steps is from 1 to
        `train_steps` - `offset`.
        """
        timesteps = self.timesteps(steps)
        timesteps.append(timesteps[-1] - self._stride(steps))
        return tuple(self._level(t, i) for i, t in enumerate(timesteps))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """Returns the step from `level` to `target`, noisier or less noisy, which adds no noise."""
        return Coefficients(*self._coefficients(level, target))

    def alpha_bar(self, t: int) -> float:
        """Returns alpha-bar at timestep t; for a negative t it is that of the end of a run."""
        return self._alpha_bars[t] if t >= 0 else self._end

    def step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """Returns the latents after one step of sampling from timestep t, in a run of `steps`.

        prediction: the network's for t and `latents`. The result, float32, is at timestep
        t - `train_steps` // steps; below 0 lie the clean latents.
        """
        level, target = self._level(t), self._level(t - self._stride(steps))
        return advance(latents, prediction, self.coefficients(level, target))

    def inverse_step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """Returns the latents at t after a step of DDIM inversion (arXiv 2105.05233, app. F).

        `latents` are at the level before, timestep t - `train_steps` // steps. `prediction` is the
        network's for timestep t and these latents, the approximation that makes the inversion
        inexact. The result is float32.
        """
        level, target = self._level(t - self._stride(steps)), self._level(t)
        return advance(latents, prediction, self.coefficients(level, target))

    def _stride(self, steps: int) -> int:
        return self.train_steps // checks.whole("steps", steps, 1, self.train_steps - self.offset)

    def _level(self, t: int, index: int = 0) -> Level:
        alpha_bar = self.alpha_bar(t)
        return Level(index, t, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def linear_alphas_cumprod(first: float, last: float, train_steps: int = 1000) -> Tensor:
    """Returns alpha-bar of all timesteps, float32, where beta grows linearly (arXiv 2006.11239).

    first, last: beta at timesteps 0 and `train_steps` - 1; alpha-bar is the running product of
    1 - beta.
    """
    return (1 - torch.linspace(first, last, train_steps, dtype=torch.float32)).cumprod(0)


def advance(latents: Tensor, prediction: Tensor, coefficients: Coefficients) -> Tensor:
    """Returns the latents after a sampler's step, without its noise: a * latents + b * prediction.

    `coefficients` holds a and b. Both tensors are converted to float32 first.
    """
    return coefficients.a * latents.float() + coefficients.b * prediction.float()


def match_levels(levels: Sequence[Level], others: Sequence[Level]) -> dict[int, int]:
    """Returns a dict: index of each level that is also among `others` -> its index there.

    Levels are the same if they have the same `identity`.
    """
    indices = {level.identity: level.index for level in others}
    return {x.index: indices[x.identity] for x in levels if x.identity in indices}


def steps_within(schedule: NoiseSchedule, levels: Collection[Level]) -> list[int]:
    """Returns, ascending, the numbers of steps whose runs visit only levels among `levels`.

    The level where a run ends does not count, because the network is not called there.
    """
    known = {level.identity for level in levels}

    def fits(steps: int) -> bool:
        return all(level.identity in known for level in schedule.levels(steps)[:-1])

    return [n for n in range(1, len(known) + 1) if fits(n)]
