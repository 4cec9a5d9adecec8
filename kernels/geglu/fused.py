"""GEGLU with one Triton kernel after the matrix product; README.md gives the reasons."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.aot import Configuration
from anyv2v.kernels.linear import linear
from anyv2v.kernels.trust import Small, alike

ROWS, COLUMNS, WARPS = 16, 256, 4
"""Rows and columns of a tile of the result, and warps per tile."""


@triton.jit
def gate_kernel(H, Y, rows, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Computes a tile of Y (rows, dim) = value * GELU(gate), from H (rows, 2 dim) = [value | gate].

    A tile has ROWS rows and COLUMNS columns.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < dim)[None, :]
    start = row.to(tl.int64)[:, None] * dim
    value_at = H + 2 * start + column[None, :]
    value = tl.load(value_at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(value_at + dim, mask=inside, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(Y + start + column[None, :], (value * gelu).to(Y.dtype.element_ty), mask=inside)


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes `geglu`: the matrix product by `linear`, the rest by a Triton kernel.

    Returns value * GELU(gate), with [value | gate] = x W^T + b; the arguments are those of
    `anyv2v.kernels.geglu.geglu`.
    """
    return gate(linear(x, weight, bias))


def gate(h: Tensor) -> Tensor:
    """Computes value * GELU(gate), (..., e), from h (..., 2 e) = [value | gate], contiguous."""
    dim = h.shape[-1] // 2
    rows = h.numel() // h.shape[-1]
    y = torch.empty(*h.shape[:-1], dim, device=h.device, dtype=h.dtype)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(dim, COLUMNS))
    with gpu.on(h):
        gate_kernel[grid](h, y, rows, dim, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS)
    return y


def small(x: Tensor, weight: Tensor, bias: Tensor) -> Small:
    """Returns the small call that stands for this call when the kernel is checked.

    It has two tiles each way, the second ragged, and only 16 input channels, because these matter
    to the matrix product alone.
    """
    rows, dim = x.numel() // x.shape[-1], weight.shape[0] // 2
    rows, dim = alike(rows, ROWS + 1), alike(dim, COLUMNS + 1)
    return Small(((1, rows, 16), (2 * dim, 16), (2 * dim,)), part=(ROWS, 64))


def configurations() -> Iterator[Configuration]:
    """Yields the configurations of `gate_kernel` for aot.py."""
    for dtype in ("bf16", "fp32"):
        yield Configuration(
            f"geglu gate {dtype}",
            gate_kernel,
            {"H": f"*{dtype}", "Y": f"*{dtype}", "rows": "i32", "dim": "i32"},
            {"ROWS": ROWS, "COLUMNS": COLUMNS},
            {"num_warps": WARPS},
            divisible=("dim",),
        )
