"""The definition of GEGLU in plain PyTorch, which every implementation must match."""

import torch
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `geglu` in float32, or in float64 for float64 inputs; returns the dtype of x.

    Returns value * GELU(gate), with [value | gate] = x W^T + b; the arguments are those of
    `anyv2v.kernels.geglu.geglu`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.einsum("...c,ec->...e", x.to(wide), weight.to(wide)) + bias.to(wide)
    value, gate = out.chunk(2, dim=-1)
    return (value * 0.5 * gate * (1 + torch.erf(gate / 2**0.5))).to(x.dtype)
