"""The definition of layer_norm in plain PyTorch, which every implementation must match."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Computes `layer_norm` in float32, or float64 for float64 inputs; returns x's dtype.

    Returns x normalized over its last dim; the arguments are those of
    `anyv2v.kernels.layer_norm.layer_norm`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    y = y - y.mean(dim=-1, keepdim=True)
    y = y / (y.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (y * weight.to(wide) + bias.to(wide)).to(x.dtype)


def add_reference(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Computes `add_layer_norm`: the sum in the dtype of the inputs, and `reference` of the sum.

    Returns the sum x + branch, and that sum normalized; the arguments are those of
    `anyv2v.kernels.layer_norm.add_layer_norm`.
    """
    total = x + branch
    return total, reference(total, weight, bias, eps)
