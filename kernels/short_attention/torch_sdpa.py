"""Short attention by `scaled_dot_product_attention`, reading tensors by strides, without copies."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes `short_attention` by a call of `scaled_dot_product_attention` per row of values.

    Returns softmax(q k^T / sqrt(d)) v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_attention`.
    """
    rows = q.shape[0]
    # positions become the batch as a view of one row; the answer goes straight to its place
    out = torch.empty((len(v), *q.shape[1:]), dtype=v.dtype, device=v.device)
    for row, value in enumerate(v):
        q_p, k_p, v_p = (
            x.permute(1, 2, 0, 3) for x in (q[row % rows], k[row % rows], value)
        )  # (p, heads, n, d)
        out[row] = F.scaled_dot_product_attention(q_p, k_p, v_p).permute(2, 0, 1, 3)
    return out
