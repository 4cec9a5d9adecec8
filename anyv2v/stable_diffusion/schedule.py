"""Stable Diffusion's noise schedule, and sampling by what predicts the noise.

alpha-bar[t] is how much of the clean latents' variance is left at timestep t. Two ways to write
noisy latents are in use: DDIM's keep the variance at 1, x = sqrt(a) x0 + sqrt(1 - a) e; Euler's
keep the picture, x = x0 + sigma e with sigma = sqrt((1 - a) / a), and are scaled to the former for
the network. The latents between the steps are float32, whatever the network computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.runtime.finite import FiniteCheck

TRAIN_STEPS = 1000
BETAS = 0.00085, 0.012
"""From the first timestep to the last, linear in their square roots."""
OFFSET = 1
"""The least noisy timestep of a run with leading spacing."""

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its index and the latents."""

Predict = Callable[[float, Tensor], Tensor]
"""(timestep, latents of variance 1) -> the noise in them, float32."""


class NoiseSchedule:
    """The alpha-bar table, and which noise levels a run of n steps visits."""

    def __init__(self, spacing: str):
        """`spacing` of Euler's timesteps: "leading" or "linspace"; DDIM's are always leading."""
        self.spacing = spacing
        # float32, as it was trained with
        betas = torch.linspace(*map(math.sqrt, BETAS), TRAIN_STEPS, dtype=torch.float32) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)

    def leading(self, steps: int) -> list[int]:
        """Where equal parts begin, noisiest first: 981, 961, ..., 1 for 50 steps."""
        stride = TRAIN_STEPS // checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return [i * stride + OFFSET for i in reversed(range(steps))]

    def timesteps(self, steps: int) -> list[float]:
        """Euler's, noisiest first; from end to end they have fractions: 999, 978.6, ..., 0."""
        if self.spacing == "leading":
            return [float(t) for t in self.leading(steps)]
        steps = checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return np.linspace(0, TRAIN_STEPS - 1, steps, dtype=np.float32)[::-1].tolist()

    def alpha_bar(self, t: int) -> float:
        """alpha-bar[t]; below t = 0 that of t = 0, since Stable Diffusion knows none cleaner."""
        return self.alphas_cumprod[max(t, 0)].item()

    def sigmas(self, steps: int) -> list[float]:
        """The noise levels at `timesteps`, linear between entries of the table, and 0."""
        alphas = self.alphas_cumprod.double().numpy()
        table = np.sqrt((1 - alphas) / alphas)
        return [*np.interp(self.timesteps(steps), np.arange(len(table)), table).tolist(), 0.0]

    def first_sigma(self, steps: int) -> float:
        """What noise of variance 1 is multiplied by to begin Euler's steps."""
        sigma = self.sigmas(steps)[0]
        # those that begin below the noisiest level count the picture's own variance in
        return sigma if self.spacing == "linspace" else math.hypot(sigma, 1)


def ddim_step(latents: Tensor, noise: Tensor, level: float, target: float) -> Tensor:
    """Moves latents from alpha-bar = `level` to `target`, without adding noise.

    DDIM (arXiv 2010.02502, eq. 12 with sigma 0): x0 = (x - sqrt(1 - a) e) / sqrt(a), then
    x' = sqrt(b) x0 + sqrt(1 - b) e. Float32 in any case.
    """
    latents, noise = latents.float(), noise.float()
    clean = (latents - math.sqrt(1 - level) * noise) / math.sqrt(level)
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise


def euler_ancestral_step(
    latents: Tensor, noise: Tensor, sigma: float, target: float, fresh: Tensor
) -> Tensor:
    """Moves latents x0 + sigma e from `sigma` to `target`: an Euler step below it, then new noise.

    The variance of DDPM's posterior is drawn anew (`fresh`, of variance 1), as k-diffusion does:
    up^2 = target^2 (sigma^2 - target^2) / sigma^2, down^2 = target^2 - up^2. Float32 in any case.
    """
    down = target**2 / sigma
    up = target * math.sqrt(max(sigma**2 - target**2, 0.0)) / sigma
    return latents.float() + (down - sigma) * noise.float() + up * fresh.float()


def ddim_start(
    clean: Tensor, noise: Tensor, schedule: NoiseSchedule, steps: int, first: int
) -> Tensor:
    """Clean latents, noised as before step `first` of `steps` (arXiv 2010.02502, eq. 4)."""
    level = schedule.alpha_bar(schedule.leading(steps)[first])
    return math.sqrt(level) * clean.float() + math.sqrt(1 - level) * noise.float()


def sample_ddim(
    predict: Predict,
    latents: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    on_step: OnStep | None = None,
    first: int = 0,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Clean latents from noise of variance 1, by DDIM; or from what `ddim_start` gives.

    first: the step that is run first, if not all are. NotFiniteError, if latents are not finite
    after a step: what `check` makes of (index, timestep).
    """
    check = check or FiniteCheck()
    stride = TRAIN_STEPS // steps
    for i, t in list(enumerate(schedule.leading(steps)))[first:]:
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
    schedule: NoiseSchedule,
    steps: int,
    fresh: Callable[[], Tensor],
    on_step: OnStep | None = None,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Clean latents from noise of variance 1, by ancestral Euler steps.

    fresh: draws noise of variance 1 in the latents' shape; called once in each step. `check` as in
    `sample_ddim`.
    """
    check = check or FiniteCheck()
    latents = latents.float() * schedule.first_sigma(steps)
    sigmas = schedule.sigmas(steps)
    for i, t in enumerate(schedule.timesteps(steps)):
        noise = predict(t, latents / math.hypot(sigmas[i], 1))
        latents = euler_ancestral_step(latents, noise, sigmas[i], sigmas[i + 1], fresh())
        check.look(latents, (i, t))
        if on_step is not None:
            on_step(i, latents)
    check.finish()
    return latents
