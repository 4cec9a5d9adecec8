"""The noise schedule of I2VGen-XL: cosine, with zero terminal SNR, for v-prediction.

alpha-bar (the clean latents' share of the variance) is 0.99996 at t = 0 and exactly 0 at t = 999.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anyv2v.diffusion.schedule import TableSchedule

TRAIN_STEPS = 1000
"""Number of timesteps in training."""
OFFSET = 1
"""The least noisy timestep of every run."""


def schedule() -> TableSchedule:
    """Returns I2VGen-XL's noise schedule, which inversion and sampling both use."""
    return TableSchedule(alphas_cumprod(), "v", OFFSET)


def alphas_cumprod() -> Tensor:
    """Computes alpha-bar of timesteps 0 to 999: (1000,) float32, bit for bit the original's.

    The table is the cosine schedule (arXiv 2102.09672, eq. 17), rescaled to zero terminal SNR
    (arXiv 2305.08891, algorithm 1). The original code converts alpha-bar to betas and back in
    float32, and so does this function: squaring directly gives values that differ by up to 5e-7.
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
    # torch's float32 square root is not correctly rounded and differs between processors. rounding
    # a float64 root is exact, so the four timesteps at which the original's root was one unit in
    # the last place too low are corrected by hand
    root = x.double().sqrt().float()
    low = [114, 408, 754, 823]
    root[low] = torch.nextafter(root[low], torch.zeros(()))
    return root
