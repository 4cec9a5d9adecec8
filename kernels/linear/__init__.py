"""Dispatch of matrix products with weights."""

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
_REQUESTED = os.environ.get("ANYV2V_LINEAR")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, impl: str | None = None) -> Tensor:
    """Computes x W^T + b.

    x (..., c), weight (e, c), bias (e,) or None -> (..., e), one dtype. `impl` or the environment
    variable ANYV2V_LINEAR names an implementation.
    """
    return choose("linear", TABLE, impl or _REQUESTED, x, weight, bias).run(x, weight, bias)
