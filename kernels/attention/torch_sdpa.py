"""Attention by `scaled_dot_product_attention`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Computes `attention` by a call of `scaled_dot_product_attention` for each group of values.

    Returns softmax(q k^T / sqrt(d)) v; the arguments are those of
    `anyv2v.kernels.attention.attention`.
    """
    # one call per group of values: q and k are read again, but never copied
    query, key = q.transpose(1, 2), k.transpose(1, 2)
    outs = [
        F.scaled_dot_product_attention(query, key, value.transpose(1, 2), is_causal=causal)
        for value in v.split(q.shape[0])
    ]
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.transpose(1, 2)


def refuses(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> str | None:
    """Returns the reason why `sdpa` cannot run the call, or None if it can."""
    if causal and q.shape[1] != k.shape[1]:
        return "a causal mask needs as many queries as keys"
    return None
