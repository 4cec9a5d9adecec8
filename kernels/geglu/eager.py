"""GEGLU, one PyTorch operation after another."""

import torch.nn.functional as F
from torch import Tensor

from anyv2v.kernels.linear import linear


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `geglu`, one PyTorch operation after another.

    Returns value * GELU(gate), with [value | gate] = x W^T + b; the arguments are those of
    `anyv2v.kernels.geglu.geglu`.
    """
    value, gate = linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)
