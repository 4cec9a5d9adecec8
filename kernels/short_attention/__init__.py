"""The door to attention over few tokens at very many positions: the temporal layers."""

import os

from torch import Tensor

from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.short_attention.reference import reference
from anyv2v.kernels.short_attention.torch_sdpa import sdpa

TABLE = (
    Implementation("sdpa", sdpa, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
_WANTED = os.environ.get("ANYV2V_SHORT_ATTENTION")


def short_attention(q: Tensor, k: Tensor, v: Tensor, *, impl: str | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over n tokens, at each of p positions by itself.

    q (r, n, p, heads, d) · k (r, m, p, heads, d) · v (g*r, m, p, heads, d) ->
    (g*r, n, p, heads, d), group outermost, contiguous; any strides in, one dtype. Each of the g
    groups of values shares one softmax. `impl` or the environment variable
    ANYV2V_SHORT_ATTENTION names an implementation.
    """
    if v.shape[0] % q.shape[0] or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"{v.shape[0]} rows of v cannot share {q.shape[0]} of q, {k.shape[0]} of k"
        )
    return choose("short_attention", TABLE, impl or _WANTED, q, k, v).run(q, k, v)
