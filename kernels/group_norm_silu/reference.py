"""The definition of group_norm_silu in plain PyTorch, which every implementation must match."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Tensor:
    """Computes `group_norm_silu` in float32, or float64 for float64 inputs; returns x's dtype.

    Returns SiLU(GroupNorm(x + shift)); the arguments are those of
    `anyv2v.kernels.group_norm_silu.group_norm_silu`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide).flatten(1, -2)
    if shift is not None:
        y = y + shift.to(wide).repeat_interleave(x.shape[0] // shift.shape[0], dim=0)[:, None]
    y = y.unflatten(-1, (groups, -1))
    mean = y.mean(dim=(1, 3), keepdim=True)
    variance = (y - mean).square().mean(dim=(1, 3), keepdim=True)
    y = ((y - mean) / (variance + eps).sqrt()).flatten(-2) * weight.to(wide) + bias.to(wide)
    if silu:
        y = y / (1 + (-y).exp())
    return y.to(x.dtype).reshape(x.shape)
