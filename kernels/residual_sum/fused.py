"""The sum of a convolutional block as one Triton kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.aot import Configuration
from anyv2v.kernels.trust import Small, alike

ROWS, CHANNELS, WARPS = 32, 64, 4
"""Rows and channels of a tile, and warps per tile."""


@triton.jit
def residual_sum_kernel(X, Branch, Bias, Y, rows, c, ROWS: tl.constexpr, C: tl.constexpr):
    """Computes a tile, ROWS rows and C channels, of Y (rows, c) = X + Branch + Bias.

    X and Branch are (rows, c), Bias is (c,). Programs with consecutive numbers compute tiles of the
    same rows.
    """
    across = tl.cdiv(c, C)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) % across * C + tl.arange(0, C)
    exists = channel < c
    inside = (row < rows)[:, None] & exists[None, :]
    at = row[:, None] * c + channel[None, :]
    total = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(Branch + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(Bias + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    tl.store(Y + at, total.to(Y.dtype.element_ty), mask=inside)


def fused(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """Computes `residual_sum` by one Triton kernel.

    Returns x + branch + bias; the arguments are those of
    `anyv2v.kernels.residual_sum.residual_sum`.
    """
    c = x.shape[-1]
    rows, y = x.numel() // c, torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with gpu.on(x):
        residual_sum_kernel[(triton.cdiv(rows, ROWS) * triton.cdiv(c, CHANNELS),)](
            *(x, branch, bias, y, rows, c), ROWS=ROWS, C=CHANNELS, num_warps=WARPS
        )
    return y


def small(x: Tensor, *_: Tensor) -> Small:
    """Returns the small call that stands for a call with this x when the kernel is checked.

    It has two tiles each way, the second ragged.
    """
    c = x.shape[-1]
    rows, channels = alike(x.numel() // c, ROWS + 1), alike(c, CHANNELS + 1)
    return Small(((1, rows, channels), (1, rows, channels), (channels,)), part=(ROWS, CHANNELS))


def configurations() -> Iterator[Configuration]:
    """Yields the configurations of `residual_sum_kernel` for aot.py."""
    for dtype in ("bf16", "fp32"):
        pointers = dict.fromkeys(("X", "Branch", "Bias", "Y"), f"*{dtype}")
        yield Configuration(
            f"residual_sum {dtype}",
            residual_sum_kernel,
            pointers | {"rows": "i32", "c": "i32"},
            {"ROWS": ROWS, "C": CHANNELS},
            {"num_warps": WARPS},
            divisible=("c",),
        )
