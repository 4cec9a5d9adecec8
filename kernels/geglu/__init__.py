"""GEGLU, the widening half of the feed-forward layers (arXiv 2002.05202), with implementations."""

import os

from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.geglu import onednn
from anyv2v.kernels.geglu.eager import eager
from anyv2v.kernels.geglu.reference import reference
from anyv2v.kernels.trust import Small


def _triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # imported on use, since triton may not be installed
    from anyv2v.kernels.geglu.fused import fused

    return fused(x, weight, bias)


def _small(x: Tensor, weight: Tensor, bias: Tensor) -> Small:
    from anyv2v.kernels.geglu.fused import small

    return small(x, weight, bias)


TABLE = (
    Implementation("triton", _triton, gpu.refuses, gpu.avoids_interpreter, _small),
    Implementation("onednn", onednn.fused, onednn.refuses),
    Implementation("eager", eager, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
"""The implementations, the best first and the definition last."""
_REQUESTED = os.environ.get("ANYV2V_GEGLU")


def geglu(x: Tensor, weight: Tensor, bias: Tensor, *, impl: str | None = None) -> Tensor:
    """Computes value * GELU(gate) with [value | gate] = x W^T + b and the exact GELU.

    x (..., c), weight (2 e, c), bias (2 e,) -> (..., e), of one dtype. impl: an implementation
    requested by name, as in `choose`; None takes the one that the environment variable ANYV2V_GEGLU
    names, or chooses automatically without it.
    """
    return choose("geglu", TABLE, impl or _REQUESTED, x, weight, bias).run(x, weight, bias)
