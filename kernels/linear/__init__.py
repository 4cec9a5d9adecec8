"""Linear layers, with a choice of implementations."""

import os

import torch.nn.functional as F
from torch import Tensor

from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.linear import onednn
from anyv2v.kernels.linear.reference import reference

TABLE = (
    Implementation("onednn", onednn.linear, onednn.refuses),
    Implementation("eager", F.linear, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
"""The implementations, the best first and the definition last."""
_REQUESTED = os.environ.get("ANYV2V_LINEAR")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, impl: str | None = None) -> Tensor:
    """Computes x W^T + b.

    x (..., c), weight (e, c), bias (e,) or None for none -> (..., e), of one dtype. impl: an
    implementation requested by name, as in `choose`; None takes the one that the environment
    variable ANYV2V_LINEAR names, or chooses automatically without it.
    """
    return choose("linear", TABLE, impl or _REQUESTED, x, weight, bias).run(x, weight, bias)
