"""The doors to attention over few tokens at very many positions: the temporal layers."""

import os

from torch import Tensor

from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.short_attention import eager, reference
from anyv2v.kernels.short_attention.torch_sdpa import sdpa


def _never(*_) -> None:
    """Takes everything."""


def _eager_yields(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    # as fast as sdpa on a CPU, and so the numbers there are the same with and without sharing
    if q.device.type == "cpu" or v.shape[0] > q.shape[0]:
        return None
    return "nothing is shared, and sdpa stores no probabilities"


TABLE = (
    Implementation("eager", eager.attention, _never, _eager_yields),
    Implementation("sdpa", sdpa, _never),
    Implementation("reference", reference.reference, _never),
)
PROBABILITIES_TABLE = (
    Implementation("eager", eager.probabilities, _never),
    Implementation("reference", reference.probabilities, _never),
)
APPLY_TABLE = (
    Implementation("eager", eager.apply, _never),
    Implementation("reference", reference.apply, _never),
)
_WANTED, _WANTED_PROBABILITIES, _WANTED_APPLY = (
    os.environ.get(f"ANYV2V_{name}")
    for name in ("SHORT_ATTENTION", "SHORT_PROBABILITIES", "APPLY_PROBABILITIES")
)


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


def short_probabilities(q: Tensor, k: Tensor, *, impl: str | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) of `short_attention`: what a record of it keeps.

    q (r, n, p, heads, d) · k (r, m, p, heads, d) -> (r, p, heads, n, m), contiguous, of q's
    dtype: m / 2d of the size of q and k. `impl` or the environment variable
    ANYV2V_SHORT_PROBABILITIES names an implementation.
    """
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"{q.shape[0]} rows of q do not fit {k.shape[0]} of k")
    table = PROBABILITIES_TABLE
    return choose("short_probabilities", table, impl or _WANTED_PROBABILITIES, q, k).run(q, k)


def apply_probabilities(weights: Tensor, v: Tensor, *, impl: str | None = None) -> Tensor:
    """The values of `short_attention` mixed by recorded probabilities.

    weights (r, p, heads, n, m) · v (g*r, m, p, heads, d) -> (g*r, n, p, heads, d), group
    outermost, contiguous. `impl` or the environment variable ANYV2V_APPLY_PROBABILITIES names an
    implementation.
    """
    if v.shape[0] % weights.shape[0] or weights.shape[4] != v.shape[1]:
        raise ValueError(
            f"probabilities {tuple(weights.shape)} (rows, positions, heads, queries, keys) do not "
            f"fit values {tuple(v.shape)} (rows, keys, positions, heads, width)"
        )
    chosen = choose("apply_probabilities", APPLY_TABLE, impl or _WANTED_APPLY, weights, v)
    return chosen.run(weights, v)
