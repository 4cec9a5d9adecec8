"""The sum at the end of a convolutional block, bias included, with a choice of implementations."""

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
"""The implementations, the best first and the definition last."""
_REQUESTED = os.environ.get("ANYV2V_RESIDUAL_SUM")


def residual_sum(x: Tensor, branch: Tensor, bias: Tensor, *, impl: str | None = None) -> Tensor:
    """Computes x + branch + bias in one pass over memory.

    x and branch (..., c) have the same shape, bias is (c,) -> the shape of x; all have one dtype.
    impl: an implementation requested by name, as in `choose`; None takes the one that the
    environment variable ANYV2V_RESIDUAL_SUM names, or chooses automatically without it. Raises
    ValueError for other shapes.
    """
    if x.shape != branch.shape or bias.shape != x.shape[-1:]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, branch, bias))
        raise ValueError(f"shapes {shapes} are not two of one shape and its last axis")
    return choose("residual_sum", TABLE, impl or _REQUESTED, x, branch, bias).run(x, branch, bias)
