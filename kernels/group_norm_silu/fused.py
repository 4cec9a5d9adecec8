"""Group normalization with SiLU in Triton; README.md gives the reasons for these kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.aot import Configuration
from anyv2v.kernels.trust import EPS, Small, alike

POSITIONS, CHANNELS, WARPS = 128, 64, 4
"""Positions, channels and warps of each tile of `moments_kernel` and `normalize_kernel`."""
COMBINE_WARPS = 16
"""Warps of each program of `combine_kernel`."""
WHOLE = 16384
"""The most elements of a row's group, its positions and channels each padded to a power of two,
that one program normalizes alone."""


@triton.jit
def _load(X, Shift, row, position, channel, exists, n, c, rows_per_shift, SHIFT: tl.constexpr):
    """Loads x + shift of a tile in float32; also returns its mask and its offsets in the row."""
    inside = (position < n)[:, None] & exists[None, :]
    offsets = position[:, None] * c + channel[None, :]
    x = tl.load(X + row.to(tl.int64) * n * c + offsets, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        at = (row // rows_per_shift) * c + channel
        x += tl.load(Shift + at, mask=exists, other=0.0).to(tl.float32)[None, :]
    return x, inside, offsets


@triton.jit
def _finish(x, mean, rstd, weight, bias, SILU: tl.constexpr):
    y = (x - mean) * rstd * weight + bias
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def whole_kernel(
    X,
    Shift,
    Weight,
    Bias,
    Y,
    n,
    c,
    groups,
    rows_per_shift,
    eps,
    GROUP_CHANNELS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    SILU: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Computes one group of one row: GROUP_CHANNELS channels, padded to C, at n positions (n <= N).

    X and Y are (rows, n, c); Shift is (rows / rows_per_shift, c). The kernel shifts, normalizes and
    applies SiLU as `group_norm_silu` does, with SHIFT and SILU saying whether to do the first and
    the last.
    """
    row, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    position, member = tl.arange(0, N), tl.arange(0, C)
    channel, exists = group * GROUP_CHANNELS + member, member < GROUP_CHANNELS
    x, inside, offsets = _load(
        X, Shift, row, position, channel, exists, n, c, rows_per_shift, SHIFT
    )
    count = n * GROUP_CHANNELS
    mean = tl.sum(tl.where(inside, x, 0.0)) / count
    off = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(off * off) / count + eps)
    weight = tl.load(Weight + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(Bias + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    y = _finish(x, mean, rstd, weight, bias, SILU)
    tl.store(Y + row.to(tl.int64) * n * c + offsets, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def moments_kernel(
    X,
    Shift,
    Means,
    Squares,
    n,
    c,
    rows_per_shift,
    N: tl.constexpr,
    C: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Computes each channel's mean over N positions, and its sum of squared deviations from it.

    The positions of a row are divided into parts of N. Means and Squares are (rows, parts, c),
    float32.
    """
    part, row = tl.program_id(0), tl.program_id(2)
    position = part * N + tl.arange(0, N)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    exists = channel < c
    x, inside, _ = _load(X, Shift, row, position, channel, exists, n, c, rows_per_shift, SHIFT)
    count = tl.minimum(n - part * N, N)
    mean = tl.sum(tl.where(inside, x, 0.0), axis=0) / count
    off = tl.where(inside, x - mean[None, :], 0.0)
    at = (row * tl.num_programs(0) + part) * c + channel
    tl.store(Means + at, mean, mask=exists)
    tl.store(Squares + at, tl.sum(off * off, axis=0), mask=exists)


@triton.jit
def combine_kernel(
    Means,
    Squares,
    Mean,
    Rstd,
    n,
    c,
    parts,
    groups,
    eps,
    GROUP_CHANNELS: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    C: tl.constexpr,
):
    """Combines a group's moments, by channel and part, into its mean and 1 / sqrt(variance + eps).

    Means and Squares (rows, parts, c) are those of `moments_kernel`; Mean and Rstd are (rows,
    groups). PARTS: parts that are read at once. C: GROUP_CHANNELS padded to a power of two.
    """
    row, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    member = tl.arange(0, C)
    column = group * GROUP_CHANNELS + member
    total = tl.zeros([PARTS, C], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (member < GROUP_CHANNELS)[None, :]
        at = (row * parts + part)[:, None] * c + column[None, :]
        count = tl.minimum(n - part * N, N).to(tl.float32)[:, None]
        total += tl.load(Means + at, mask=inside, other=0.0) * count
    elements = n * GROUP_CHANNELS
    mean = tl.sum(total) / elements
    squares = tl.zeros([PARTS, C], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (member < GROUP_CHANNELS)[None, :]
        at = (row * parts + part)[:, None] * c + column[None, :]
        count = tl.minimum(n - part * N, N).to(tl.float32)[:, None]
        # deviations from the group's mean: those from the part's mean + count * (difference)^2
        off = tl.load(Means + at, mask=inside, other=0.0) - mean
        squares += tl.load(Squares + at, mask=inside, other=0.0)
        squares += tl.where(inside, off * off * count, 0.0)
    tl.store(Mean + tl.program_id(0), mean)
    tl.store(Rstd + tl.program_id(0), tl.rsqrt(tl.sum(squares) / elements + eps))


@triton.jit
def normalize_kernel(
    X,
    Shift,
    Mean,
    Rstd,
    Weight,
    Bias,
    Y,
    n,
    c,
    groups,
    rows_per_shift,
    GROUP_CHANNELS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    SILU: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Normalizes a tile of N positions and C channels with the statistics of its row's groups.

    Mean and Rstd (rows, groups) are those of `combine_kernel`; the other arguments are as in
    `whole_kernel`.
    """
    row = tl.program_id(2)
    position = tl.program_id(0) * N + tl.arange(0, N)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    exists = channel < c
    x, inside, offsets = _load(
        X, Shift, row, position, channel, exists, n, c, rows_per_shift, SHIFT
    )
    at = row * groups + channel // GROUP_CHANNELS
    mean = tl.load(Mean + at, mask=exists, other=0.0)[None, :]
    rstd = tl.load(Rstd + at, mask=exists, other=0.0)[None, :]
    weight = tl.load(Weight + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(Bias + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    y = _finish(x, mean, rstd, weight, bias, SILU)
    tl.store(Y + row.to(tl.int64) * n * c + offsets, y.to(Y.dtype.element_ty), mask=inside)


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Tensor:
    """Computes `group_norm_silu`: one Triton kernel for small groups, three for others.

    The arguments are those of `anyv2v.kernels.group_norm_silu.group_norm_silu`.
    """
    rows, c = x.shape[0], x.shape[-1]
    n, group_channels = x[0, ..., 0].numel(), c // groups
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    has_shift = shift is not None
    rows_per_shift = rows // shift.shape[0] if has_shift else 1
    # never read where there is no shift
    shift = shift.contiguous() if has_shift else x
    members, positions = triton.next_power_of_2(group_channels), triton.next_power_of_2(n)
    if positions * members <= WHOLE:
        with gpu.on(x):
            whole_kernel[(rows * groups,)](
                *(x, shift, weight, bias, y),
                *(n, c, groups, rows_per_shift, eps),
                GROUP_CHANNELS=group_channels,
                N=positions,
                C=members,
                SILU=silu,
                SHIFT=has_shift,
                num_warps=_whole_warps(positions * members),
            )
        return y

    parts = triton.cdiv(n, POSITIONS)
    means, squares = torch.empty(2, rows, parts, c, dtype=torch.float32, device=x.device)
    mean, rstd = torch.empty(2, rows, groups, dtype=torch.float32, device=x.device)
    grid = (parts, triton.cdiv(c, CHANNELS), rows)
    tile = {"N": POSITIONS, "C": CHANNELS, "SHIFT": has_shift, "num_warps": WARPS}
    with gpu.on(x):
        moments_kernel[grid](x, shift, means, squares, n, c, rows_per_shift, **tile)
        combine_kernel[(rows * groups,)](
            *(means, squares, mean, rstd),
            *(n, c, parts, groups, eps),
            GROUP_CHANNELS=group_channels,
            N=POSITIONS,
            PARTS=_parts_at_once(members),
            C=members,
            num_warps=COMBINE_WARPS,
        )
        normalize_kernel[grid](
            *(x, shift, mean, rstd, weight, bias, y),
            *(n, c, groups, rows_per_shift),
            GROUP_CHANNELS=group_channels,
            SILU=silu,
            **tile,
        )
    return y


def _whole_warps(elements: int) -> int:
    return 4 if elements <= 4096 else 8 if elements <= 8192 else 16


def _parts_at_once(channels: int) -> int:
    return max(1, 4096 // channels)


def small(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Small:
    """Returns the small call that stands for this call when the kernels are checked.

    It has few rows and groups. A group has as many channels as here, and the same kernels run.
    """
    n, group_channels = x[0, ..., 0].numel(), x.shape[-1] // groups
    members = triton.next_power_of_2(group_channels)
    per_shift = 1 if shift is None else alike(x.shape[0] // shift.shape[0], 2)
    shifts, groups = (1 if per_shift > 1 else 2), alike(groups, 2, group_channels)
    c = groups * group_channels
    parts = triton.cdiv(n, POSITIONS)
    if triton.next_power_of_2(n) * members > WHOLE and parts > 1:
        # as few positions as are still too many for one program
        n = alike(n, max(POSITIONS, WHOLE // members) + 1)
        while (triton.cdiv(n, POSITIONS) % 16 == 0) != (parts % 16 == 0):
            n += 16
    return Small(
        ((shifts * per_shift, n, c), (c,), (c,)),
        (groups, EPS),
        (("silu", silu), ("shift", None if shift is None else (shifts, c))),
        part=(16, math.gcd(group_channels, CHANNELS)),
        offset=1.0,
    )


def configurations() -> Iterator[Configuration]:
    """Yields configurations of the four kernels for aot.py, for groups of 10 to 80 channels.

    The UNet has such groups: it divides 320 to 2560 channels into 32 groups.
    """
    sizes = dict.fromkeys(("n", "c", "groups", "rows_per_shift"), "i32")
    x = dict.fromkeys(("X", "Shift", "Y", "Weight", "Bias"), "*bf16")
    moments = dict.fromkeys(("Means", "Squares"), "*fp32")
    statistics = dict.fromkeys(("Mean", "Rstd"), "*fp32")
    tile = {"N": POSITIONS, "C": CHANNELS, "SHIFT": True}

    def named(types, *names):
        return {name: types[name] for name in names}

    for positions, channels, group_channels in ((64, 64, 40), (256, 64, 40)):
        yield Configuration(
            f"group_norm_silu whole {positions} x {channels}",
            whole_kernel,
            x | sizes | {"eps": "fp32"},
            dict(GROUP_CHANNELS=group_channels, N=positions, C=channels, SILU=True, SHIFT=True),
            {"num_warps": _whole_warps(positions * channels)},
            divisible=("c",),
        )
    yield Configuration(
        "group_norm_silu moments",
        moments_kernel,
        named(x, "X", "Shift") | moments | named(sizes, "n", "c", "rows_per_shift"),
        tile,
        {"num_warps": WARPS},
        divisible=("c",),
    )
    for group_channels in (10, 80):
        channels = triton.next_power_of_2(group_channels)
        yield Configuration(
            f"group_norm_silu combine, {group_channels} channels",
            combine_kernel,
            moments
            | statistics
            | named(sizes, "n", "c", "groups")
            | {"parts": "i32", "eps": "fp32"},
            dict(
                GROUP_CHANNELS=group_channels,
                N=POSITIONS,
                PARTS=_parts_at_once(channels),
                C=channels,
            ),
            {"num_warps": COMBINE_WARPS},
            divisible=("c",),
        )
    yield Configuration(
        "group_norm_silu normalize",
        normalize_kernel,
        x | statistics | sizes,
        tile | dict(GROUP_CHANNELS=10, SILU=True),
        {"num_warps": WARPS},
        divisible=("c",),
    )
