"""Short attention by batched matrix products, which read the tensors by strides, without copies."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes `short_attention` by batched matrix products.

    Returns softmax(q k^T / sqrt(d)) v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_attention`.
    """
    return apply(probabilities(q, k), v)


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Computes `short_probabilities` by batched matrix products.

    Returns softmax(q k^T / sqrt(d)) at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_probabilities`.
    """
    rows = [_softmax(*row) for row in zip(q, k, strict=True)]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def apply(weights: Tensor, v: Tensor) -> Tensor:
    """Computes `apply_probabilities` by batched matrix products.

    Returns the probabilities times v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.apply_probabilities`.
    """
    rows, n = weights.shape[0], weights.shape[3]
    out = torch.empty((v.shape[0], n, *v.shape[2:]), dtype=v.dtype, device=v.device)
    for row, value in enumerate(v):
        # positions and heads become one batch, a view; the answer goes straight to its place
        product = torch.matmul(weights[row % rows], value.permute(1, 2, 0, 3))
        out[row] = product.permute(2, 0, 1, 3)
    return out


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Computes q (n, p, heads, d) · k (m, p, heads, d) -> (p, heads, n, m), contiguous."""
    dtype = q.dtype
    if q.device.type == "cpu":
        # half types multiply no faster there, and the scores keep all their digits
        q, k = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k))
    query, key = (x.permute(1, 2, 0, 3).flatten(0, 1) for x in (q, k))
    # the scale is applied before the scores are rounded
    scores = torch.baddbmm(
        query.new_empty(()).expand(1, 1, 1), query, key.mT, beta=0, alpha=q.shape[-1] ** -0.5
    )
    wide = torch.promote_types(dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(dtype).unflatten(0, q.shape[1:3])
