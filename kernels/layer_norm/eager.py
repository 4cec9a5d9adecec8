"""Layer normalization by PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def eager(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Computes `layer_norm` by PyTorch's function of that name.

    Returns x normalized over its last dim; the arguments are those of
    `anyv2v.kernels.layer_norm.layer_norm`.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_eager(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Computes `add_layer_norm`, the sum and the normalization one after the other.

    Returns the sum x + branch, and that sum normalized; the arguments are those of
    `anyv2v.kernels.layer_norm.add_layer_norm`.
    """
    total = x + branch
    return total, eager(total, weight, bias, eps)
