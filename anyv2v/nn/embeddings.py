"""Numbers to vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Numbers (b,) -> (b, width) float32: cosines, then sines, of frequencies 1 to 1/10000.

    As in DDPM (arXiv 2006.11239), with the frequencies exp(-ln(10000) j / (width/2)).
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=numbers.device) / half
    angles = numbers.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def mlp(width_in: int, width: int, width_out: int | None = None) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(
        nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width_out or width)
    )
