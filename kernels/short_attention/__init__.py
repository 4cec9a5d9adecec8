"""Attention over few tokens at very many positions, as in the temporal layers.

It comes whole, or in two halves between which the probabilities can be recorded, each with a choice
of implementations.
"""

import os

import torch
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.short_attention import eager, reference
from anyv2v.kernels.short_attention.torch_sdpa import sdpa
from anyv2v.kernels.trust import Small


def _never(*_) -> None:
    """Refuses no call."""


def _eager_avoids(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    # as fast as sdpa on a CPU, and so the numbers there are the same with and without sharing
    if q.device.type == "cpu" or v.shape[0] > q.shape[0]:
        return None
    return "nothing is shared, and sdpa stores no probabilities"


def _triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # imported on use, here and below, since triton may not be installed
    from anyv2v.kernels.short_attention import fused

    return fused.attention(q, k, v)


def _triton_probabilities(q: Tensor, k: Tensor) -> Tensor:
    from anyv2v.kernels.short_attention import fused

    return fused.probabilities(q, k)


def _triton_apply(weights: Tensor, v: Tensor) -> Tensor:
    from anyv2v.kernels.short_attention import fused

    return fused.apply(weights, v)


def _small(q: Tensor, k: Tensor, v: Tensor | None = None) -> Small:
    from anyv2v.kernels.short_attention import fused

    return fused.small(q, k, v)


def _small_apply(weights: Tensor, v: Tensor) -> Small:
    from anyv2v.kernels.short_attention import fused

    return fused.small_apply(weights, v)


def _triton_refuses(q: Tensor, k: Tensor, v: Tensor | None = None) -> str | None:
    shapes = [tuple(x.shape[1:]) for x in (q, k, v) if x is not None]
    if q.shape[2:] != k.shape[2:] or shapes[-1] != shapes[1]:
        return f"its rows do not fit one another: {', '.join(map(str, shapes))}"
    tensors = (q, k) if v is None else (q, k, v)
    return _too_large(q, q.shape[1], k.shape[1]) or gpu.refuses(*tensors)


def _triton_apply_refuses(weights: Tensor, v: Tensor) -> str | None:
    rows, positions, heads, n, m = weights.shape
    if v.shape[1:4] != (m, positions, heads):
        return f"{tuple(weights.shape)} does not fit {tuple(v.shape)}"
    if not weights.is_contiguous():
        return "the probabilities are not contiguous; call .contiguous() first"
    return _too_large(v, n, m) or gpu.refuses(weights, v)


def _too_large(x: Tensor, n: int, m: int) -> str | None:
    """Returns the reason why x (r, tokens, p, heads, d), with n by m weights, is too large."""
    _, _, positions, heads, d = x.shape
    if max(n, m) > 128:
        return f"{max(n, m)} tokens are over 128; attention() is for those"
    if d > 128:
        return f"head dim {d} is over 128"
    if x.dtype == torch.float32 and x.is_cuda and (max(n, m) > 32 or d > 64):
        return f"float32 is for 32 tokens and head dim 64 at most, not {max(n, m)} and {d}"
    if positions * heads * n * max(m, d) >= 2**31:
        return "one row of the answer spans 2^31 elements or more; use fewer positions"
    return None


TABLE = (
    Implementation("triton", _triton, _triton_refuses, gpu.avoids, _small),
    Implementation("eager", eager.attention, _never, _eager_avoids),
    Implementation("sdpa", sdpa, _never),
    Implementation("reference", reference.reference, _never),
)
"""The implementations of `short_attention`, the best first and the definition last."""
PROBABILITIES_TABLE = (
    Implementation("triton", _triton_probabilities, _triton_refuses, gpu.avoids, _small),
    Implementation("eager", eager.probabilities, _never),
    Implementation("reference", reference.probabilities, _never),
)
"""The implementations of `short_probabilities`, the best first and the definition last."""
APPLY_TABLE = (
    Implementation("triton", _triton_apply, _triton_apply_refuses, gpu.avoids, _small_apply),
    Implementation("eager", eager.apply, _never),
    Implementation("reference", reference.apply, _never),
)
"""The implementations of `apply_probabilities`, the best first and the definition last."""
_REQUESTED, _REQUESTED_PROBABILITIES, _REQUESTED_APPLY = (
    os.environ.get(f"ANYV2V_{name}")
    for name in ("SHORT_ATTENTION", "SHORT_PROBABILITIES", "APPLY_PROBABILITIES")
)


def short_attention(q: Tensor, k: Tensor, v: Tensor, *, impl: str | None = None) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) v over n tokens, at each of p positions by itself.

    q (r, n, p, heads, d), k (r, m, p, heads, d), v (g*r, m, p, heads, d) -> (g*r, n, p, heads, d),
    contiguous: g groups of values share one softmax, and row i of group j has index j*r + i. Inputs
    may have any strides; all have one dtype.

    impl: an implementation requested by name, as in `choose`; None takes the one that the
    environment variable ANYV2V_SHORT_ATTENTION names, or chooses automatically without it. Raises
    ValueError if the rows of q, k and v do not fit.
    """
    if v.shape[0] % q.shape[0] or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"{v.shape[0]} rows of v cannot share {q.shape[0]} of q, {k.shape[0]} of k"
        )
    return choose("short_attention", TABLE, impl or _REQUESTED, q, k, v).run(q, k, v)


def short_probabilities(q: Tensor, k: Tensor, *, impl: str | None = None) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)), the first half of `short_attention`, for later use.

    q (r, n, p, heads, d), k (r, m, p, heads, d) -> (r, p, heads, n, m), contiguous, of the dtype of
    q. It takes m / 2d of the memory of q and k. impl: an implementation requested by name, as in
    `choose`; None takes the one that the environment variable ANYV2V_SHORT_PROBABILITIES names, or
    chooses automatically without it. Raises ValueError if q and k differ in rows.
    """
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"{q.shape[0]} rows of q do not fit {k.shape[0]} of k")
    table = PROBABILITIES_TABLE
    return choose("short_probabilities", table, impl or _REQUESTED_PROBABILITIES, q, k).run(q, k)


def apply_probabilities(weights: Tensor, v: Tensor, *, impl: str | None = None) -> Tensor:
    """Applies attention probabilities to values, which is the second half of `short_attention`.

    weights (r, p, heads, n, m), as `short_probabilities` returns them, and v (g*r, m, p, heads, d)
    -> (g*r, n, p, heads, d), contiguous; row i of group j has index j*r + i. impl: an
    implementation requested by name, as in `choose`; None takes the one that the environment
    variable ANYV2V_APPLY_PROBABILITIES names, or chooses automatically without it. Raises
    ValueError if the shapes do not fit.
    """
    if v.shape[0] % weights.shape[0] or weights.shape[4] != v.shape[1]:
        raise ValueError(
            f"probabilities {tuple(weights.shape)} (rows, positions, heads, queries, keys) do not "
            f"fit values {tuple(v.shape)} (rows, keys, positions, heads, head_dim)"
        )
    chosen = choose("apply_probabilities", APPLY_TABLE, impl or _REQUESTED_APPLY, weights, v)
    return chosen.run(weights, v)
