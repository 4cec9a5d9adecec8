"""Stable Diffusion's noise schedule, and its samplers: DDIM and ancestral Euler.

alpha-bar[t] is the clean latents' share of the variance at timestep t. The samplers write noisy
latents x in two ways, here with a for alpha-bar, x0 for clean latents and e for noise. In DDIM, x
has variance 1: x = sqrt(a) x0 + sqrt(1 - a) e. In Euler's method, x0 is not scaled, so that
x = x0 + sigma e with sigma = sqrt((1 - a) / a), and x is scaled to variance 1 for the network.
Between the steps, latents are float32, whatever dtype the network computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.runtime.finite import FiniteCheck
from anyv2v.runtime.interrupt import check_interrupt

TRAIN_STEPS = 1000
"""Number of timesteps in training."""
BETAS = 0.00085, 0.012
"""Betas of the first and the last timestep; their square roots are linear between them."""
OFFSET = 1
"""The least noisy timestep of a run with leading spacing."""

OnStep = Callable[[int, Tensor], None]
"""Function that is called after each step with the step's index, from 0, and the new latents."""

Predict = Callable[[float, Tensor], Tensor]
"""Function (timestep, noisy latents scaled to variance 1) -> predicted noise, float32."""


class DiscreteSchedule:
    """Stable Diffusion's noise schedule: alpha-bar of 1000 timesteps, and the timesteps of a run.

    alpha-bar[t] is the clean latents' share of the variance at timestep t; `alphas_cumprod` holds
    all values, (1000,) float32.
    """

    def __init__(self, spacing: str):
        """Makes a schedule; `spacing` is that of the Euler sampler's timesteps.

        "linspace": the timesteps are evenly spaced from 999 to 0. "leading": the 1000 timesteps are
        divided into equal parts, and the timestep of a part is its least noisy one, plus 1. DDIM
        always uses "leading" timesteps.
        """
        self.spacing = spacing
        # float32, as in training
        first, last = map(math.sqrt, BETAS)
        betas = torch.linspace(first, last, TRAIN_STEPS, dtype=torch.float32) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)

    def leading(self, steps: int) -> list[int]:
        """Returns DDIM's timesteps, noisiest first: 981, 961, ..., 1 for 50 steps.

        Raises InputError if `steps` is not a whole number from 1 to 999.
        """
        stride = TRAIN_STEPS // checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return [i * stride + OFFSET for i in reversed(range(steps))]

    def timesteps(self, steps: int) -> list[float]:
        """Returns the Euler sampler's timesteps, noisiest first, in the schedule's spacing.

        For 50 steps, "linspace" makes 999, 978.6, ..., 0, and "leading" makes 981, 961, ..., 1.
        Raises InputError if `steps` is not a whole number from 1 to 999.
        """
        if self.spacing == "leading":
            return [float(t) for t in self.leading(steps)]
        steps = checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return np.linspace(0, TRAIN_STEPS - 1, steps, dtype=np.float32)[::-1].tolist()

    def alpha_bar(self, t: int) -> float:
        """Returns alpha-bar[t]; for t < 0 it is alpha-bar[0], the cleanest level of the table."""
        return self.alphas_cumprod[max(t, 0)].item()

    def sigmas(self, steps: int) -> list[float]:
        """Returns sigma at each of the Euler sampler's `timesteps`, then 0: steps + 1 values.

        sigma is the noise's standard deviation relative to the clean latents',
        sqrt((1 - alpha-bar) / alpha-bar), interpolated linearly at fractional timesteps.
        """
        alphas = self.alphas_cumprod.double().numpy()
        table = np.sqrt((1 - alphas) / alphas)
        return [*np.interp(self.timesteps(steps), np.arange(len(table)), table).tolist(), 0.0]

    def first_sigma(self, steps: int) -> float:
        """Returns the factor that makes noise of variance 1 the Euler sampler's first latents.

        steps: number of steps of the run.
        """
        sigma = self.sigmas(steps)[0]
        # leading timesteps start below the noisiest level, where the image's variance counts too
        return sigma if self.spacing == "linspace" else math.hypot(sigma, 1)


def ddim_step(latents: Tensor, noise: Tensor, level: float, target: float) -> Tensor:
    """Moves latents by one deterministic DDIM step; returns them in float32.

    latents: x, of variance 1. noise: the predicted noise e. level, target: alpha-bar before and
    after the step, a and b. The step (arXiv 2010.02502, eq. 12 with sigma 0) is
    x0 = (x - sqrt(1 - a) e) / sqrt(a), then x' = sqrt(b) x0 + sqrt(1 - b) e.
    """
    latents, noise = latents.float(), noise.float()
    clean = (latents - math.sqrt(1 - level) * noise) / math.sqrt(level)
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise


def euler_ancestral_step(
    latents: Tensor, noise: Tensor, sigma: float, target: float, fresh: Tensor
) -> Tensor:
    """Moves latents by one ancestral Euler step; returns them in float32.

    latents: x0 + sigma e, not scaled to variance 1. noise: the predicted noise e. sigma, target:
    standard deviation of the noise before and after the step. fresh: new noise of variance 1.

    An Euler step leads to a noise level `down`, below `target`, and the new noise leads back up to
    `target`. As in k-diffusion, the new noise has the variance of DDPM's posterior:
    up^2 = target^2 (sigma^2 - target^2) / sigma^2, down^2 = target^2 - up^2.
    """
    down = target**2 / sigma
    up = target * math.sqrt(max(sigma**2 - target**2, 0.0)) / sigma
    return latents.float() + (down - sigma) * noise.float() + up * fresh.float()


def ddim_start(
    clean: Tensor, noise: Tensor, schedule: DiscreteSchedule, steps: int, first: int
) -> Tensor:
    """Adds noise to clean latents, up to the level at which a DDIM run's step `first` begins.

    noise: of variance 1, in the shape of `clean`. steps: number of steps of the whole run. first:
    index of a step, counted from 0 for the noisiest. Returns float32 latents of variance 1 (arXiv
    2010.02502, eq. 4).
    """
    level = schedule.alpha_bar(schedule.leading(steps)[first])
    return math.sqrt(level) * clean.float() + math.sqrt(1 - level) * noise.float()


def sample_ddim(
    predict: Predict,
    latents: Tensor,
    schedule: DiscreteSchedule,
    steps: int,
    on_step: OnStep | None = None,
    first: int = 0,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Samples clean latents by DDIM and returns them in float32.

    predict: the noise prediction. latents: noise of variance 1 or, if `first` is above 0, the
    result of `ddim_start`. steps: number of steps of the whole run. on_step: called after each
    step; None calls nothing. first: index of the first step that is run. check: checks the latents
    after each step and words the error, given the step's (index, timestep); None uses a plain
    message. Raises NotFiniteError if latents have infinite or NaN values.
    """
    check = check or FiniteCheck()
    stride = TRAIN_STEPS // steps
    for i, t in list(enumerate(schedule.leading(steps)))[first:]:
        check_interrupt()
        levels = schedule.alpha_bar(t), schedule.alpha_bar(t - stride)
        latents = ddim_step(latents, predict(t, latents), *levels)
        check.look(latents, (i, t))
        if on_step is not None:
            on_step(i, latents)
    check.finish()
    return latents


def sample_euler_ancestral(
    predict: Predict,
    latents: Tensor,
    schedule: DiscreteSchedule,
    steps: int,
    fresh: Callable[[], Tensor],
    on_step: OnStep | None = None,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Samples clean latents by ancestral Euler steps and returns them in float32.

    predict: the noise prediction. latents: noise of variance 1. fresh: returns new noise of
    variance 1 in the latents' shape; called once per step. on_step: called after each step; None
    calls nothing. check: as in `sample_ddim`. Raises NotFiniteError if latents have infinite or NaN
    values.
    """
    check = check or FiniteCheck()
    latents = latents.float() * schedule.first_sigma(steps)
    sigmas = schedule.sigmas(steps)
    for i, t in enumerate(schedule.timesteps(steps)):
        check_interrupt()
        noise = predict(t, latents / math.hypot(sigmas[i], 1))
        latents = euler_ancestral_step(latents, noise, sigmas[i], sigmas[i + 1], fresh())
        check.look(latents, (i, t))
        if on_step is not None:
            on_step(i, latents)
    check.finish()
    return latents
