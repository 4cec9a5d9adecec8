"""GEGLU, one PyTorch operation after another."""

import torch.nn.functional as F
from torch import Tensor

from anyv2v.kernels.linear import linear


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `geglu`, one PyTorch operation after another."""
    value, gate = linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)
