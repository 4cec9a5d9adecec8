"""Stable Diffusion's noise schedule, and its samplers: DDIM and ancestral Euler.

alpha-bar[t] is the share of the clean latents in the variance at timestep t. Noisy latents are
written in two ways, with a for alpha-bar, x0 for the clean latents and e for the noise. DDIM keeps
the variance at 1: x = sqrt(a) x0 + sqrt(1 - a) e. Euler keeps x0: x = x0 + sigma e with sigma =
sqrt((1 - a) / a), and scales that to variance 1 for the network. The latents between the steps are
float32, whatever dtype the network computes in.
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
"""Betas of the first and the last timestep; their square roots are linear between them."""
OFFSET = 1
"""The least noisy timestep of a run with leading spacing."""

OnStep = Callable[[int, Tensor], None]
"""Function that is called after each step with its index and the latents."""

Predict = Callable[[float, Tensor], Tensor]
"""Function (timestep, latents of variance 1) -> the noise in them, float32."""


class DiscreteSchedule:
    """The alpha-bar table, and the timesteps and noise levels of a run of n steps."""

    def __init__(self, spacing: str):
        """Makes a schedule whose Euler timesteps have that `spacing`; DDIM's are always leading.

        "leading": each timestep is the least noisy one of an equal part of the table. "linspace":
        the timesteps are evenly spaced from the noisiest to 0.
        """
        self.spacing = spacing
        # float32, as in training
        first, last = map(math.sqrt, BETAS)
        betas = torch.linspace(first, last, TRAIN_STEPS, dtype=torch.float32) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)

    def leading(self, steps: int) -> list[int]:
        """Returns DDIM's timesteps, noisiest first: 981, 961, ..., 1 for 50 steps."""
        stride = TRAIN_STEPS // checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return [i * stride + OFFSET for i in reversed(range(steps))]

    def timesteps(self, steps: int) -> list[float]:
        """Returns Euler's timesteps, noisiest first; with linspace 999, 978.6, ..., 0."""
        if self.spacing == "leading":
            return [float(t) for t in self.leading(steps)]
        steps = checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return np.linspace(0, TRAIN_STEPS - 1, steps, dtype=np.float32)[::-1].tolist()

    def alpha_bar(self, t: int) -> float:
        """Returns alpha-bar[t], and alpha-bar[0] below t = 0: the table has no cleaner level."""
        return self.alphas_cumprod[max(t, 0)].item()

    def sigmas(self, steps: int) -> list[float]:
        """Returns sigma at each of `timesteps`, then 0; entries of the table are interpolated."""
        alphas = self.alphas_cumprod.double().numpy()
        table = np.sqrt((1 - alphas) / alphas)
        return [*np.interp(self.timesteps(steps), np.arange(len(table)), table).tolist(), 0.0]

    def first_sigma(self, steps: int) -> float:
        """Returns the factor that scales noise of variance 1 to the start of Euler's steps."""
        sigma = self.sigmas(steps)[0]
        # leading timesteps start below the noisiest level, where the image's variance counts too
        return sigma if self.spacing == "linspace" else math.hypot(sigma, 1)


def ddim_step(latents: Tensor, noise: Tensor, level: float, target: float) -> Tensor:
    """Moves latents from alpha-bar = `level` to `target`, without adding noise.

    DDIM (arXiv 2010.02502, eq. 12 with sigma 0): x0 = (x - sqrt(1 - a) e) / sqrt(a), then
    x' = sqrt(b) x0 + sqrt(1 - b) e. The result is float32.
    """
    latents, noise = latents.float(), noise.float()
    clean = (latents - math.sqrt(1 - level) * noise) / math.sqrt(level)
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise


def euler_ancestral_step(
    latents: Tensor, noise: Tensor, sigma: float, target: float, fresh: Tensor
) -> Tensor:
    """Moves latents x0 + sigma e from `sigma` to `target` by an ancestral Euler step; float32.

    An Euler step leads to the noise level `down`, below `target`, and new noise (`fresh`, of
    variance 1) leads back up. As in k-diffusion, the new noise has the variance of DDPM's
    posterior: up^2 = target^2 (sigma^2 - target^2) / sigma^2, down^2 = target^2 - up^2.
    """
    down = target**2 / sigma
    up = target * math.sqrt(max(sigma**2 - target**2, 0.0)) / sigma
    return latents.float() + (down - sigma) * noise.float() + up * fresh.float()


def ddim_start(
    clean: Tensor, noise: Tensor, schedule: DiscreteSchedule, steps: int, first: int
) -> Tensor:
    """Noises clean latents as they are before step `first` of `steps` (arXiv 2010.02502, eq. 4)."""
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
    """Samples clean latents from noise of variance 1 by DDIM, with noise predictions.

    first: index of the first step that is run; above 0 the latents must be those of `ddim_start`.
    Raises NotFiniteError if latents are not finite after a step; `check` makes its message from the
    step's (index, timestep).
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
    schedule: DiscreteSchedule,
    steps: int,
    fresh: Callable[[], Tensor],
    on_step: OnStep | None = None,
    check: FiniteCheck | None = None,
) -> Tensor:
    """Samples clean latents from noise of variance 1 by ancestral Euler steps.

    fresh: draws noise of variance 1 in the latents' shape, and is called once per step. `check` and
    NotFiniteError: see `sample_ddim`.
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
