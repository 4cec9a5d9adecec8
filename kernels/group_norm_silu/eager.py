"""Group normalization with SiLU, one PyTorch operation after another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Tensor:
    """Computes `group_norm_silu`, one PyTorch operation after another.

    Returns SiLU(GroupNorm(x + shift)); the arguments are those of
    `anyv2v.kernels.group_norm_silu.group_norm_silu`.
    """
    shape = x.shape
    if shift is not None:
        ones = [1] * (x.ndim - 1)
        x = x.unflatten(0, (shift.shape[0], -1)) + shift.reshape(shift.shape[0], *ones, -1)
    # a channels-last image (r, c, 1, n), which torch normalizes without copying it
    image = x.reshape(shape[0], 1, -1, shape[-1]).permute(0, 3, 1, 2)
    y = F.group_norm(image, groups, weight, bias, eps).permute(0, 2, 3, 1).reshape(shape)
    return F.silu(y) if silu else y
