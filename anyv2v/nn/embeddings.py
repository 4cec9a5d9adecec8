"""Embeddings of numbers such as the timestep and the frame rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoids(numbers: Tensor, dim: int) -> Tensor:
    """Embeds numbers (b,) as (b, dim) float32: dim / 2 cosines, then the sines of the same angles.

    The embedding is that of DDPM (arXiv 2006.11239). The angles are the number times frequencies
    from 1 down to about 1/10000: exp(-ln(10000) j / (dim/2)) for j from 0. `dim` must be even.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=numbers.device) / half
    angles = numbers.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def mlp(in_dim: int, hidden_dim: int, out_dim: int | None = None) -> nn.Sequential:
    """Builds a two-layer perceptron (linear, SiLU, linear); `out_dim` defaults to `hidden_dim`."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim or hidden_dim)
    )
