"""Group normalization together with the SiLU after it, with a choice of implementations."""

import os

from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Implementation, choose
from anyv2v.kernels.group_norm_silu.eager import eager
from anyv2v.kernels.group_norm_silu.reference import reference
from anyv2v.kernels.trust import Small


def _triton(*args, **options) -> Tensor:
    # imported on use, since triton may not be installed
    from anyv2v.kernels.group_norm_silu.fused import fused

    return fused(*args, **options)


def _small(*args, **options) -> Small:
    from anyv2v.kernels.group_norm_silu.fused import small

    return small(*args, **options)


def _refuses(x, weight, bias, groups, eps, *, silu=True, shift=None) -> str | None:
    if not x.is_contiguous():
        return "the input is not contiguous"
    if x.shape[0] > 65535:
        return f"{x.shape[0]} rows are more than its grid has, 65535"
    return gpu.refuses(x, weight, bias, *([] if shift is None else [shift]))


TABLE = (
    Implementation("triton", _triton, _refuses, gpu.avoids_interpreter, _small),
    Implementation("eager", eager, lambda *_, **__: None),
    Implementation("reference", reference, lambda *_, **__: None),
)
"""The implementations, the best first and the definition last."""
_REQUESTED = os.environ.get("ANYV2V_GROUP_NORM_SILU")


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Computes SiLU(GroupNorm(x + shift)), normalizing each row (first dim) of x by itself.

    x (r, ..., c), channels last -> the shape of x. The c channels are divided into `groups` equal
    groups, and the mean and variance of each are taken over all dims between the first and the
    last, too (arXiv 1803.08494). weight and bias (c,) apply to the normalized values. shift (s, c),
    with s dividing r: each of its rows is added to r / s consecutive rows of x; None adds nothing.
    All tensors have one dtype. silu False leaves out the SiLU.

    impl: an implementation requested by name, as in `choose`; None takes the one that the
    environment variable ANYV2V_GROUP_NORM_SILU names, or chooses automatically without it. Raises
    ValueError if `groups` does not divide c or `shift` does not fit x.
    """
    if x.shape[-1] % groups:
        raise ValueError(f"{x.shape[-1]} channels cannot be {groups} groups of one size")
    if shift is not None and (x.shape[0] % shift.shape[0] or shift.shape[1:] != x.shape[-1:]):
        raise ValueError(f"shifts {tuple(shift.shape)} are not for rows of {tuple(x.shape)}")
    options = {"silu": silu, "shift": shift}
    chosen = choose(
        "group_norm_silu", TABLE, impl or _REQUESTED, x, weight, bias, groups, eps, **options
    )
    return chosen.run(x, weight, bias, groups, eps, **options)
