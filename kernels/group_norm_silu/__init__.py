"""Dispatch of group normalization together with the SiLU after it."""

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
    """Computes SiLU(GroupNorm(x + shift)), over all dims between the first and the last.

    x (r, ..., c), weight and bias (c,), shift (s, c) with s dividing r: each of its rows is added
    to r / s consecutive rows of x -> the shape of x, one dtype. `silu` False leaves out the SiLU.
    Group normalization: arXiv 1803.08494. `impl` or the environment variable
    ANYV2V_GROUP_NORM_SILU names an implementation.
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
