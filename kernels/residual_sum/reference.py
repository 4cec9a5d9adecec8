"""The definition of residual_sum in plain PyTorch, which every implementation must match."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """Computes `residual_sum` in float32, or float64 for float64 inputs; returns x's dtype.

    Returns x + branch + bias; the arguments are those of
    `anyv2v.kernels.residual_sum.residual_sum`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) + branch.to(wide) + bias.to(wide)).to(x.dtype)
