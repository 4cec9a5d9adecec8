"""The door to attention: every attention over many tokens in the project goes through here."""

import os

from torch import Tensor

from anyv2v.kernels.attention.reference import reference
from anyv2v.kernels.attention.torch_sdpa import refuses, sdpa
from anyv2v.kernels.choose import Implementation, choose

TABLE = (
    Implementation("sdpa", sdpa, refuses),
    Implementation("reference", reference, lambda *_, **__: None),
)
_WANTED = os.environ.get("ANYV2V_ATTENTION")


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, impl: str | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with one softmax shared by g groups of values.

    q (r, n, heads, d) · k (r, m, heads, d) · v (g*r, m, heads, d) -> (g*r, n, heads, d), group
    outermost; any strides, one dtype. `causal` hides the keys after each query's own place.
    `impl` or the environment variable ANYV2V_ATTENTION names an implementation; one that cannot
    take the call then raises `Unsupported`.
    """
    if v.shape[0] % q.shape[0] or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"{v.shape[0]} rows of v cannot share {q.shape[0]} of q, {k.shape[0]} of k"
        )
    chosen = choose("attention", TABLE, impl or _WANTED, q, k, v, causal=causal)
    return chosen.run(q, k, v, causal=causal)
