"""GEGLU with one Triton kernel after the matrix product. README.md beside this file says why."""

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


@triton.jit
def gate_kernel(H, Y, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of value * GELU(gate), H (rows, 2 width) = [value | gate]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    start = row.to(tl.int64)[:, None] * width
    value_at = H + 2 * start + column[None, :]
    value = tl.load(value_at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(value_at + width, mask=inside, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(Y + start + column[None, :], (value * gelu).to(Y.dtype.element_ty), mask=inside)


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gate(linear(x, weight, bias))


def gate(h: Tensor) -> Tensor:
    """H (..., 2 e) = [value | gate], contiguous -> value * GELU(gate), (..., e)."""
    width = h.shape[-1] // 2
    rows = h.numel() // h.shape[-1]
    y = torch.empty(*h.shape[:-1], width, device=h.device, dtype=h.dtype)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS))
    with gpu.on(h):
        gate_kernel[grid](h, y, rows, width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS)
    return y


def small(x: Tensor, weight: Tensor, bias: Tensor) -> Small:
    """Two tiles each way, the last of them ragged; few channels, which are the product's."""
    rows, width = x.numel() // x.shape[-1], weight.shape[0] // 2
    rows, width = alike(rows, ROWS + 1), alike(width, COLUMNS + 1)
    return Small(((1, rows, 16), (2 * width, 16), (2 * width,)), part=(ROWS, 64))


def configurations() -> Iterator[Configuration]:
    for dtype in ("bf16", "fp32"):
        yield Configuration(
            f"geglu gate {dtype}",
            gate_kernel,
            {"H": f"*{dtype}", "Y": f"*{dtype}", "rows": "i32", "width": "i32"},
            {"ROWS": ROWS, "COLUMNS": COLUMNS},
            {"num_warps": WARPS},
            divisible=("width",),
        )
