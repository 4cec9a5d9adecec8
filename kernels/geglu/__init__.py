"""The door to GEGLU, the feed-forward layers' widening half (arXiv 2002.05202)."""

import os

import torch.nn.functional as F
from torch import Tensor

from anyv2v.kernels import onednn
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.geglu.reference import reference
from anyv2v.kernels.linear import linear


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    value, gate = linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # GELU and the product happen where the products of the matrices come out
    (w_value, w_gate), (b_value, b_gate) = weight.chunk(2), bias.chunk(2)
    gate = onednn.product(x, w_gate, b_gate, "gelu")
    return onednn.product_times(x, w_value, b_value, gate)


def fused_refuses(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if onednn.wants_gradients(x, weight, bias):
        return "it has no gradients"
    return onednn.refuses(x, weight, bias)


TABLE = (
    Implementation("onednn", fused, fused_refuses),
    Implementation("torch", eager, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
_WANTED = os.environ.get("ANYV2V_GEGLU")


def geglu(x: Tensor, weight: Tensor, bias: Tensor, *, impl: str | None = None) -> Tensor:
    """value * GELU(gate), of [value | gate] = x W^T + b; GELU with erf.

    x (..., c), weight (2 e, c), bias (2 e,) -> (..., e), one dtype. `impl` or the environment
    variable ANYV2V_GEGLU names an implementation.
    """
    return choose("geglu", TABLE, impl or _WANTED, x, weight, bias).run(x, weight, bias)
