"""What layer_norm is, in plain PyTorch: the definition that implementations are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    y = y - y.mean(dim=-1, keepdim=True)
    y = y / (y.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (y * weight.to(wide) + bias.to(wide)).to(x.dtype)


def add_reference(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = x + branch
    return total, reference(total, weight, bias, eps)
