"""The definition of linear in plain PyTorch, which every implementation must match."""

import torch
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes `linear` in float32, or in float64 for float64 inputs; returns the dtype of x.

    Returns x W^T + b; the arguments are those of `anyv2v.kernels.linear.linear`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.einsum("...c,ec->...e", x.to(wide), weight.to(wide))
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)
