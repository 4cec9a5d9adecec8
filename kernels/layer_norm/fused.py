"""Layer normalization as one Triton kernel, with or without the sum before it (README.md)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.aot import Configuration
from anyv2v.kernels.trust import EPS, Small, alike

TILE, WARPS = 4096, 4
"""Elements of a tile (padded rows), unless a single row has more; and warps per tile."""


@triton.jit
def layer_norm_kernel(
    X,
    Branch,
    Weight,
    Bias,
    Total,
    Y,
    rows,
    dim,
    share,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """Normalizes ROWS whole rows, padded from `dim` to PADDED_DIM; `share` is 1 / dim.

    X, Branch, Total and Y are (rows, dim). ADD: add Branch to X first and write the sum to Total.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED_DIM)
    exists = column < dim
    inside = (row < rows)[:, None] & exists[None, :]
    at = row.to(tl.int64)[:, None] * dim + column[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(Branch + at, mask=inside, other=0.0).to(tl.float32)
        total = x.to(Total.dtype.element_ty)
        tl.store(Total + at, total, mask=inside)
        # normalize the rounded sum, which is what later layers read
        x = total.to(tl.float32)
    mean = tl.sum(x, axis=1) * share
    off = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(off * off, axis=1) * share + eps)
    weight = tl.load(Weight + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(Bias + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    y = off * rstd[:, None] * weight + bias
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


def fused(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Computes `layer_norm` by one Triton kernel.

    Returns x normalized over its last dim; the arguments are those of
    `anyv2v.kernels.layer_norm.layer_norm`.
    """
    return _launch(x, None, weight, bias, eps)[1]


def add_fused(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Computes `add_layer_norm` by one Triton kernel.

    Returns the sum x + branch, and that sum normalized; the arguments are those of
    `anyv2v.kernels.layer_norm.add_layer_norm`.
    """
    return _launch(x, branch, weight, bias, eps)


def _launch(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    dim = x.shape[-1]
    rows = x.numel() // dim
    padded = triton.next_power_of_2(dim)
    adds = branch is not None
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device) if adds else x
    tile = _rows(padded)
    with gpu.on(x):
        layer_norm_kernel[(triton.cdiv(rows, tile),)](
            x,
            branch if adds else x,
            weight,
            bias,
            total,
            y,
            rows,
            dim,
            1 / dim,
            eps,
            ADD=adds,
            ROWS=tile,
            PADDED_DIM=padded,
            num_warps=WARPS,
        )
    return total, y


def _rows(padded: int) -> int:
    return max(1, TILE // padded)


def small(*args: Tensor | float) -> Small:
    """Returns the small call that stands for this call when the kernel is checked.

    It has three tiles of rows, and as many channels as this call. args: (x, weight, bias, eps), or
    (x, branch, weight, bias, eps).
    """
    *inputs, weight, _, _ = args
    dim = weight.shape[0]
    tile = _rows(triton.next_power_of_2(dim))
    rows = alike(inputs[0].numel() // dim, 2 * tile + 1)
    shapes = [(1, rows, dim)] * len(inputs)
    return Small((*shapes, (dim,), (dim,)), (EPS,), offset=1.0)


def configurations() -> Iterator[Configuration]:
    """Yields the configurations of `layer_norm_kernel` for aot.py, for the channels of the UNet."""
    pointers = dict.fromkeys(("X", "Branch", "Weight", "Bias", "Total", "Y"), "*bf16")
    numbers = {"rows": "i32", "dim": "i32", "share": "fp32", "eps": "fp32"}
    for dim, adds in ((320, True), (640, True), (1280, True), (320, False)):
        padded = triton.next_power_of_2(dim)
        yield Configuration(
            f"layer_norm {'add ' if adds else ''}{dim}",
            layer_norm_kernel,
            pointers | numbers,
            {"ADD": adds, "ROWS": _rows(padded), "PADDED_DIM": padded},
            {"num_warps": WARPS},
            divisible=("dim",),
        )
