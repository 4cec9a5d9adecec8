"""Layer normalisation in Triton, with the sum in front of it (README.md says where it pays)."""

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


@triton.jit
def layer_norm_kernel(
    X,
    Branch,
    Weight,
    Bias,
    Total,
    Y,
    rows,
    width,
    share,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Whole rows, padded from `width` to WIDTH; `share` is 1 / width."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    exists = column < width
    inside = (row < rows)[:, None] & exists[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(Branch + at, mask=inside, other=0.0).to(tl.float32)
        total = x.to(Total.dtype.element_ty)
        tl.store(Total + at, total, mask=inside)
        # what is normalised is what is kept
        x = total.to(tl.float32)
    mean = tl.sum(x, axis=1) * share
    off = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(off * off, axis=1) * share + eps)
    weight = tl.load(Weight + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(Bias + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    y = off * rstd[:, None] * weight + bias
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


def fused(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight, bias, eps)[1]


def add_fused(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _launch(x, branch, weight, bias, eps)


def _launch(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    rows = x.numel() // width
    padded = triton.next_power_of_2(width)
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
            width,
            1 / width,
            eps,
            ADD=adds,
            ROWS=tile,
            WIDTH=padded,
            num_warps=WARPS,
        )
    return total, y


def _rows(padded: int) -> int:
    return max(1, TILE // padded)


def small(*args: Tensor | float) -> Small:
    """Three tiles of rows as wide as those of the call: (x, weight, bias, eps), or two of x."""
    *inputs, weight, _, _ = args
    width = weight.shape[0]
    tile = _rows(triton.next_power_of_2(width))
    rows = alike(inputs[0].numel() // width, 2 * tile + 1)
    shapes = [(1, rows, width)] * len(inputs)
    return Small((*shapes, (width,), (width,)), (EPS,), offset=1.0)


def configurations() -> Iterator[Configuration]:
    pointers = dict.fromkeys(("X", "Branch", "Weight", "Bias", "Total", "Y"), "*bf16")
    numbers = {"rows": "i32", "width": "i32", "share": "fp32", "eps": "fp32"}
    for width, adds in ((320, True), (640, True), (1280, True), (320, False)):
        padded = triton.next_power_of_2(width)
        yield Configuration(
            f"layer_norm {'add ' if adds else ''}{width}",
            layer_norm_kernel,
            pointers | numbers,
            {"ADD": adds, "ROWS": _rows(padded), "WIDTH": padded},
            {"num_warps": WARPS},
            divisible=("width",),
        )
