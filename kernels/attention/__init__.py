"""Attention over many tokens, with a choice of implementations.

The CLIP towers, the VAE, Wan, and the spatial attention and cross-attention of the UNets call it.
"""

import math
import os

from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.attention import torch_sdpa
from anyv2v.kernels.attention.reference import reference
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.trust import Small


def _triton(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    # imported on use, since triton may not be installed
    from anyv2v.kernels.attention import fused

    return fused.attention(q, k, v, causal=causal)


def _triton_small(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Small:
    from anyv2v.kernels.attention import fused

    return fused.small(q, k, v, causal=causal)


def _triton_refuses(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> str | None:
    head_dims = q.shape[-1], k.shape[-1], v.shape[-1]
    if not head_dims[0] == head_dims[1] == head_dims[2]:
        return "head dims {}, {} and {} are not one".format(*head_dims)
    if head_dims[0] > 128:
        return f"head dim {head_dims[0]} is over 128"
    if math.prod(q.shape[1:]) >= 2**31:
        return "one row of the answer spans 2^31 elements or more; use fewer tokens"
    return gpu.refuses(q, k, v)


def _triton_avoids(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> str | None:
    if v.shape[0] == q.shape[0]:
        return "nothing is shared, where sdpa is expected to be as fast"
    return gpu.avoids(q, k, v)


TABLE = (
    Implementation("triton", _triton, _triton_refuses, _triton_avoids, _triton_small),
    Implementation("sdpa", torch_sdpa.sdpa, torch_sdpa.refuses),
    Implementation("reference", reference, lambda *_, **__: None),
)
"""The implementations, the best first and the definition last."""
_REQUESTED = os.environ.get("ANYV2V_ATTENTION")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, impl: str | None = None
) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) v, with one softmax shared by g groups of values.

    q (r, n, heads, d), k (r, m, heads, d), v (g*r, m, heads, d) -> (g*r, n, heads, d): in each of r
    rows of the batch, n queries attend to m keys. Row i of group j of `v` and of the result has
    index j*r + i. Any strides; one dtype. causal: query i sees only keys 0 to i.

    impl: an implementation requested by name, as in `choose`; None takes the one that the
    environment variable ANYV2V_ATTENTION names, or chooses automatically without it. Raises
    `Unsupported` if it cannot run the call, and ValueError if the rows of q, k and v do not fit.
    """
    if v.shape[0] % q.shape[0] or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"{v.shape[0]} rows of v cannot share {q.shape[0]} of q, {k.shape[0]} of k"
        )
    chosen = choose("attention", TABLE, impl or _REQUESTED, q, k, v, causal=causal)
    return chosen.run(q, k, v, causal=causal)
