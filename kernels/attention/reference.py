"""The definition of attention in plain PyTorch, which every implementation must match."""

import torch
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Computes `attention` in float32, or in float64 for float64 inputs; returns the dtype of v.

    Returns softmax(q k^T / sqrt(d)) v; the arguments are those of
    `anyv2v.kernels.attention.attention`.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    rows, n, heads, d = q.shape
    groups = v.shape[0] // rows
    scores = torch.einsum("rnhd,rmhd->rhnm", q.to(wide), k.to(wide)) * d**-0.5
    if causal:
        after = torch.ones(n, k.shape[1], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(after, float("-inf"))
    weights = scores.softmax(dim=-1)
    values = v.to(wide).unflatten(0, (groups, rows))
    out = torch.einsum("rhnm,grmhe->grnhe", weights, values)
    return out.flatten(0, 1).to(v.dtype)
