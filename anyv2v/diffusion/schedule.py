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
    """Position in the run; 0 is the noisiest."""
    t: float
    """The timestep that the network is given: a whole number or a fraction, as in its training."""
    alpha: float
    """Weight of the clean latents."""
    sigma: float
    """Weight of the noise."""
    inversion_level: Level | None = None
    """The level of the inversion at which a run reads its source; None: this level. Needed by
    samplers whose levels are not those of the inversion."""

    @property
    def identity(self) -> tuple[float, float, float]:
        """(t, alpha, sigma) to 9 digits; equal for the same level in two runs.

        Rounded, because another number of steps or another machine may compute the same level with
        another last bit. A level with an `inversion_level` has the identity of that one.
        """
        level = self.inversion_level or self
        t, alpha, sigma = (float(f"{x:.9g}") for x in (level.t, level.alpha, level.sigma))
        return t, alpha, sigma


class Coefficients(NamedTuple):
    """One step of a sampler: x_target = a * x + b * prediction + noise * z, z standard normal."""

    a: float
    b: float
    noise: float = 0.0


class NoiseSchedule(Protocol):
    """The levels of a run, and the steps between them."""

    def levels(self, steps: int) -> Sequence[Level]:
        """The steps + 1 levels of a run, the noisiest first; the last is where it ends.

        InputError if the schedule has no run of so many steps.
        """
        ...

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """The step from `level` to `target`, which may be less noisy or noisier."""
        ...


class TableSchedule:
    """A schedule of `len(alphas_cumprod)` whole timesteps, with deterministic steps (DDIM).

    alpha-bar[t] is the share of the clean latents' variance at timestep t: alpha is its square
    root, and sigma is the square root of 1 - alpha-bar[t].
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: str, offset: int = 0):
        """Makes a schedule of a table.

        alphas_cumprod: alpha-bar, float32 (train_steps,). prediction: what the network predicts,
        a name in `PREDICTIONS`. offset: the least noisy timestep of every run.
        """
        checks.one_of("prediction", prediction, tuple(PREDICTIONS))
        self.alphas_cumprod, self.offset = alphas_cumprod, offset
        self.train_steps = len(alphas_cumprod)
        self._coefficients = PREDICTIONS[prediction]
        self._alpha_bars: list[float] = alphas_cumprod.tolist()

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of a run, the noisiest first: 981, 961, ..., 1 for 50 and offset 1."""
        stride = self._stride(steps)
        return [i * stride + self.offset for i in reversed(range(steps))]

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The levels of `timesteps`, and the one below the last; see `NoiseSchedule.levels`."""
        timesteps = self.timesteps(steps)
        timesteps.append(timesteps[-1] - self._stride(steps))
        return tuple(self._level(t, i) for i, t in enumerate(timesteps))

    def coefficients(self, level: Level, target: Level) -> Coefficients:
        """The DDIM step from `level` to `target`."""
        return Coefficients(*self._coefficients(level, target))

    def alpha_bar(self, t: int) -> float:
        """alpha-bar[t]; 1 for the clean latents, which lie before t = 0."""
        return self._alpha_bars[t] if t >= 0 else 1.0

    def step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """The DDIM step of a run of `steps` from timestep t to the next less noisy one."""
        level, target = self._level(t), self._level(t - self._stride(steps))
        return advance(latents, prediction, self.coefficients(level, target))

    def inverse_step(self, prediction: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """The step from the level below t up to t of DDIM inversion (arXiv 2105.05233, app. F).

        `prediction` is the network's for timestep t and `latents`, which are still at the level
        below: the approximation that makes this inversion inexact.
        """
        level, target = self._level(t - self._stride(steps)), self._level(t)
        return advance(latents, prediction, self.coefficients(level, target))

    def _stride(self, steps: int) -> int:
        return self.train_steps // checks.whole("steps", steps, 1, self.train_steps - self.offset)

    def _level(self, t: int, index: int = 0) -> Level:
        alpha_bar = self.alpha_bar(t)
        return Level(index, t, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def advance(latents: Tensor, prediction: Tensor, coefficients: Coefficients) -> Tensor:
    """One step of a sampler without its noise: a * latents + b * prediction, in float32."""
    return coefficients.a * latents.float() + coefficients.b * prediction.float()


def match_levels(levels: Sequence[Level], others: Sequence[Level]) -> dict[int, int]:
    """Index of each level that is also among `others` -> its index there."""
    indices = {level.identity: level.index for level in others}
    return {x.index: indices[x.identity] for x in levels if x.identity in indices}


def steps_within(schedule: NoiseSchedule, levels: Collection[Level]) -> list[int]:
    """The numbers of steps whose runs visit only these levels before their end."""
    known = {level.identity for level in levels}

    def fits(steps: int) -> bool:
        return all(level.identity in known for level in schedule.levels(steps)[:-1])

    return [n for n in range(1, len(known) + 1) if fits(n)]
