"""Layer normalization, alone or with the sum before it, with a choice of implementations."""

import os

from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.layer_norm.eager import add_eager, eager
from anyv2v.kernels.layer_norm.reference import add_reference, reference
from anyv2v.kernels.trust import Small


def _triton(*args) -> Tensor:
    # imported on use, since triton may not be installed
    from anyv2v.kernels.layer_norm.fused import fused

    return fused(*args)


def _add_triton(*args) -> tuple[Tensor, Tensor]:
    from anyv2v.kernels.layer_norm.fused import add_fused

    return add_fused(*args)


def _small(*args) -> Small:
    from anyv2v.kernels.layer_norm.fused import small

    return small(*args)


def _refuses(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if not x.is_contiguous():
        return "the input is not contiguous"
    if x.shape[-1] > 8192:
        return f"{x.shape[-1]} numbers are more than one program holds, 8192"
    return gpu.refuses(x, weight, bias)


def _add_refuses(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if not branch.is_contiguous():
        return "the second input is not contiguous"
    return _refuses(x, weight, bias, eps) or gpu.refuses(x, branch)


TABLE = (
    Implementation("triton", _triton, _refuses, gpu.avoids_interpreter, _small),
    Implementation("eager", eager, lambda *_: None),
    Implementation("reference", reference, lambda *_: None),
)
"""The implementations of `layer_norm`, the best first and the definition last."""
ADD_TABLE = (
    Implementation("triton", _add_triton, _add_refuses, gpu.avoids_interpreter, _small),
    Implementation("eager", add_eager, lambda *_: None),
    Implementation("reference", add_reference, lambda *_: None),
)
"""The implementations of `add_layer_norm`, the best first and the definition last."""
_REQUESTED, _REQUESTED_ADD = (
    os.environ.get(f"ANYV2V_{n}") for n in ("LAYER_NORM", "ADD_LAYER_NORM")
)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, impl: str | None = None
) -> Tensor:
    """Normalizes x over its last dim (layer normalization, arXiv 1607.06450).

    The result is (x - mean) / sqrt(variance + eps) * weight + bias. x (..., c), weight and bias
    (c,) -> the shape of x; all have one dtype. impl: an implementation requested by name, as in
    `choose`; None takes the one that the environment variable ANYV2V_LAYER_NORM names, or chooses
    automatically without it.
    """
    chosen = choose("layer_norm", TABLE, impl or _REQUESTED, x, weight, bias, eps)
    return chosen.run(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (x + branch, `layer_norm` of that sum).

    x and branch (..., c) have the same shape, as have both results; weight and bias (c,). impl: an
    implementation requested by name, as in `choose`; None takes the one that the environment
    variable ANYV2V_ADD_LAYER_NORM names, or chooses automatically without it. Raises ValueError if
    x and branch differ in shape.
    """
    if x.shape != branch.shape:
        raise ValueError(f"{tuple(x.shape)} and {tuple(branch.shape)} are not of one shape")
    chosen = choose(
        "add_layer_norm", ADD_TABLE, impl or _REQUESTED_ADD, x, branch, weight, bias, eps
    )
    return chosen.run(x, branch, weight, bias, eps)
