"""Dispatch of the sum at the end of a convolutional block, which adds a bias as well."""

import os

from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.residual_sum.eager import eager
from anyv2v.kernels.residual_sum.reference import reference
from anyv2v.kernels.trust import Small


def _triton(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    # imported on use, since triton may not be installed
    from anyv2v.kernels.residual_sum.fused import fused

    return fused(x, branch, bias)


def _small(*args: Tensor) -> Small:
    from anyv2v.kernels.residual_sum.fused import small

    return small(*args)


def _refuses(x: Tensor, branch: Tensor, bias: Tensor) -> str | None:
    if not (x.is_contiguous() and branch.is_contiguous()):
        return "an input is not contiguous"
    return gpu.refuses(x, branch, bias)


TABLE = (
    Implementation("triton", _triton, _refuses, gpu.avoids_interpreter, _small),
    Implementation("eager", eager, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
_REQUESTED = os.environ.get("ANYV2V_RESIDUAL_SUM")


def residual_sum(x: Tensor, branch: Tensor, bias: Tensor, *, impl: str | None = None) -> Tensor:
    """Computes x + branch + bias in one pass.

    x and branch (..., c) have the same shape, bias is (c,); all have one dtype. `impl` or the
    environment variable ANYV2V_RESIDUAL_SUM names an implementation.
    """
    if x.shape != branch.shape or bias.shape != x.shape[-1:]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, branch, bias))
        raise ValueError(f"shapes {shapes} are not two of one shape and its last axis")
    return choose("residual_sum", TABLE, impl or _REQUESTED, x, branch, bias).run(x, branch, bias)
