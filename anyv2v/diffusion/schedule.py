"""The noise schedule of I2VGen-XL: cosine, zero terminal SNR, v-prediction.

alpha-bar[t] (`alphas_cumprod`) is how much of the clean latents' variance is left at timestep t:
0.99996 at t = 0, exactly 0 at t = 999.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from anyv2v import checks

TRAIN_STEPS = 1000
OFFSET = 1
"""The least noisy timestep of every run."""


class Schedule:
    """The alpha-bar table, and which timesteps a run of n steps visits."""

    def __init__(self):
        self.alphas_cumprod = alphas_cumprod()

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of a sampling run, noisiest first: 981, 961, ..., 1 for 50 steps."""
        stride = TRAIN_STEPS // checks.whole("steps", steps, 1, TRAIN_STEPS - OFFSET)
        return [i * stride + OFFSET for i in reversed(range(steps))]

    def steps_within(self, timesteps: Collection[int]) -> list[int]:
        """The numbers of steps whose runs visit none but these timesteps."""
        known = set(timesteps)
        return [n for n in range(1, len(known) + 1) if set(self.timesteps(n)) <= known]

    def alpha_bar(self, t: int) -> float:
        """alpha-bar[t]; 1 for the clean latents, which lie before t = 0."""
        return self.alphas_cumprod[t].item() if t >= 0 else 1.0

    def step(self, v: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """The DDIM step of a run of `steps` from timestep t to the next less noisy one."""
        before = self.alpha_bar(t - TRAIN_STEPS // steps)
        return ddim_step(latents, v, self.alpha_bar(t), before)

    def inverse_step(self, v: Tensor, t: int, latents: Tensor, steps: int) -> Tensor:
        """From the level below t up to t, as plain DDIM inversion does (arXiv 2105.05233, app. F).

        v is what the network says of `latents`, which are still at the level below, when it is
        asked about t: the approximation that makes this inversion inexact.
        """
        before = self.alpha_bar(t - TRAIN_STEPS // steps)
        return ddim_step(latents, v, before, self.alpha_bar(t))


def ddim_step(latents: Tensor, v: Tensor, level: float, target: float) -> Tensor:
    """Moves latents from the noise level alpha-bar = `level` to `target`, without adding noise.

    DDIM (arXiv 2010.02502) with v-prediction (arXiv 2202.00512): a rotation of (x, v), so nothing
    is singular where alpha-bar is 0.
    x0 = sqrt(a) x - sqrt(1 - a) v, e = sqrt(a) v + sqrt(1 - a) x, x' = sqrt(b) x0 + sqrt(1 - b) e.
    Float32 in any case.
    """
    latents, v = latents.float(), v.float()
    clean = math.sqrt(level) * latents - math.sqrt(1 - level) * v
    noise = math.sqrt(level) * v + math.sqrt(1 - level) * latents
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise


def alphas_cumprod() -> Tensor:
    """alpha-bar (1000,) float32: the cosine schedule (arXiv 2102.09672, eq. 17), rescaled to zero
    terminal SNR (arXiv 2305.08891, algorithm 1), bit for bit as the original has it.

    The chain through betas and back in float32 is the original's: squaring directly gives values
    that differ by 5e-7.
    """

    def remaining(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    grid = [i / TRAIN_STEPS for i in range(TRAIN_STEPS + 1)]
    pairs = zip(grid, grid[1:], strict=False)
    betas = torch.tensor([min(1 - remaining(after) / remaining(u), 0.999) for u, after in pairs])
    root = _original_sqrt((1 - betas).cumprod(0))
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    squared = root * root
    alphas = torch.cat([squared[:1], squared[1:] / squared[:-1]])
    betas = 1 - alphas
    return (1 - betas).cumprod(0)


def _original_sqrt(x: Tensor) -> Tensor:
    # torch's float32 square root is not correctly rounded and differs between processors. this one
    # is, but for the four timesteps at which the original's was one unit in the last place low
    root = x.double().sqrt().float()
    low = [114, 408, 754, 823]
    root[low] = torch.nextafter(root[low], torch.zeros(()))
    return root
