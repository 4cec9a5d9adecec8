"""Short attention, many sequences per program; its probabilities kept, and replayed (README.md).

A sequence is one head at one position. Heads are innermost in memory, so sequences that are
neighbours by number are neighbours there too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from anyv2v.kernels import gpu
from anyv2v.kernels.aot import TARGETS, Configuration
from anyv2v.kernels.trust import Small, alike


@triton.jit
def _wide(x, UPCAST: tl.constexpr):
    # the interpreter multiplies bfloat16 as if its bits were integers; a GPU must not upcast
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def _product(a, b):
    """One matrix product per sequence."""
    if a.shape[0] == 1:
        # in three dims a single one would not be given to the tensor cores
        a, b = tl.reshape(a, a.shape[1:]), tl.reshape(b, b.shape[1:])
        out = tl.expand_dims(tl.dot(a, b, input_precision="ieee"), 0)
    else:
        out = tl.dot(a, b, input_precision="ieee")
    return out


@triton.jit
def _softmax(
    q_ptrs,
    k_ptrs,
    q_token,
    k_token,
    scale,
    inside,
    N: tl.constexpr,
    M: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(sequences, PADDED, PADDED); the pointers are those of the first tokens."""
    token = tl.arange(0, PADDED)[None, :, None]
    q = tl.load(q_ptrs + token * q_token, mask=inside & (token < N), other=0.0)
    k = tl.load(k_ptrs + token * k_token, mask=inside & (token < M), other=0.0)
    k = tl.permute(_wide(k, UPCAST), (0, 2, 1))
    scores = _product(_wide(q, UPCAST), k) * scale
    if M < PADDED:
        scores = tl.where(tl.arange(0, PADDED)[None, None, :] < M, scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 2, keep_dims=True))
    return weights / tl.sum(weights, 2, keep_dims=True)


@triton.jit
def _mix(
    weights,
    v_ptr,
    out_ptr,
    first,
    rows,
    groups,
    sequence,
    sequences,
    within,
    v_row,
    v_token,
    across,
    inside,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Every group's values by the same weights; `within` says where in a row sequences begin."""
    token = tl.arange(0, PADDED)[None, :, None]
    size = sequences * WIDTH
    for group in range(groups):
        row = first + group * rows
        v_ptrs = v_ptr + row * v_row + within + token * v_token + across
        values = tl.load(v_ptrs, mask=inside & (token < M), other=0.0)
        out = _product(weights, _wide(values, UPCAST))
        # the answer is contiguous (groups rows, n, sequences, width)
        out_ptrs = out_ptr + row * N * size + token * size + sequence * WIDTH + across
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=inside & (token < N))


@triton.jit
def short_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    scale,
    rows,
    groups,
    positions,
    heads,
    q_row,
    q_token,
    q_position,
    q_head,
    k_row,
    k_token,
    k_position,
    k_head,
    v_row,
    v_token,
    v_position,
    v_head,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """TOGETHER sequences of one row; `scale` includes log2(e)."""
    sequences = positions * heads
    blocks = tl.cdiv(sequences, TOGETHER)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = tl.program_id(0) % blocks * TOGETHER + tl.arange(0, TOGETHER)[:, None, None]
    position = sequence // heads
    head = sequence % heads
    across = tl.arange(0, PADDED_WIDTH)[None, None, :]
    inside = (sequence < sequences) & (across < WIDTH)

    q_ptrs = q_ptr + row * q_row + position * q_position + head * q_head + across
    k_ptrs = k_ptr + row * k_row + position * k_position + head * k_head + across
    weights = _softmax(q_ptrs, k_ptrs, q_token, k_token, scale, inside, N, M, PADDED, UPCAST)
    weights = _wide(weights.to(out_ptr.dtype.element_ty), UPCAST)
    within = position * v_position + head * v_head
    _mix(
        weights,
        v_ptr,
        out_ptr,
        row,
        rows,
        groups,
        sequence,
        sequences,
        within,
        v_row,
        v_token,
        across,
        inside,
        N,
        M,
        WIDTH,
        PADDED,
        UPCAST,
    )


@triton.jit
def short_probabilities_kernel(
    q_ptr,
    k_ptr,
    weights_ptr,
    scale,
    positions,
    heads,
    q_row,
    q_token,
    q_position,
    q_head,
    k_row,
    k_token,
    k_position,
    k_head,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The softmax of TOGETHER sequences of one row, written; `scale` includes log2(e)."""
    sequences = positions * heads
    blocks = tl.cdiv(sequences, TOGETHER)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = tl.program_id(0) % blocks * TOGETHER + tl.arange(0, TOGETHER)[:, None, None]
    position = sequence // heads
    head = sequence % heads
    across = tl.arange(0, PADDED_WIDTH)[None, None, :]
    inside = (sequence < sequences) & (across < WIDTH)

    q_ptrs = q_ptr + row * q_row + position * q_position + head * q_head + across
    k_ptrs = k_ptr + row * k_row + position * k_position + head * k_head + across
    weights = _softmax(q_ptrs, k_ptrs, q_token, k_token, scale, inside, N, M, PADDED, UPCAST)
    query = tl.arange(0, PADDED)[None, :, None]
    key = tl.arange(0, PADDED)[None, None, :]
    # contiguous (rows, sequences, n, m)
    ptrs = weights_ptr + row * sequences * N * M + sequence * (N * M) + query * M + key
    mask = (sequence < sequences) & (query < N) & (key < M)
    tl.store(ptrs, weights.to(weights_ptr.dtype.element_ty), mask=mask)


@triton.jit
def apply_probabilities_kernel(
    weights_ptr,
    v_ptr,
    out_ptr,
    rows,
    groups,
    positions,
    heads,
    v_row,
    v_token,
    v_position,
    v_head,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """TOGETHER sequences of one row, by probabilities that were kept."""
    sequences = positions * heads
    blocks = tl.cdiv(sequences, TOGETHER)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = tl.program_id(0) % blocks * TOGETHER + tl.arange(0, TOGETHER)[:, None, None]
    across = tl.arange(0, PADDED_WIDTH)[None, None, :]
    inside = (sequence < sequences) & (across < WIDTH)

    query = tl.arange(0, PADDED)[None, :, None]
    key = tl.arange(0, PADDED)[None, None, :]
    ptrs = weights_ptr + row * sequences * N * M + sequence * (N * M) + query * M + key
    mask = (sequence < sequences) & (query < N) & (key < M)
    weights = _wide(tl.load(ptrs, mask=mask, other=0.0), UPCAST)
    within = sequence // heads * v_position + sequence % heads * v_head
    _mix(
        weights,
        v_ptr,
        out_ptr,
        row,
        rows,
        groups,
        sequence,
        sequences,
        within,
        v_row,
        v_token,
        across,
        inside,
        N,
        M,
        WIDTH,
        PADDED,
        UPCAST,
    )


@dataclass(frozen=True)
class Tiles:
    together: int
    """Sequences in a program."""
    warps: int


# tokens, padded -> tiles: few registers, so that many programs wait for memory at once
_TILES = {16: Tiles(4, 4), 32: Tiles(2, 4), 64: Tiles(1, 8), 128: Tiles(1, 8)}
LONGEST = max(_TILES)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, n, positions, heads, width = q.shape
    out = torch.empty((v.shape[0], *q.shape[1:]), dtype=q.dtype, device=q.device)
    grid, constants = _grid_and_constants(q.shape, k.shape[1], q.dtype)
    with gpu.on(q):
        short_attention_kernel[grid](
            q,
            k,
            v,
            out,
            _scale(width),
            rows,
            v.shape[0] // rows,
            positions,
            heads,
            *q.stride()[:4],
            *k.stride()[:4],
            *v.stride()[:4],
            **constants,
        )
    return out


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    rows, n, positions, heads, width = q.shape
    weights = torch.empty((rows, positions, heads, n, k.shape[1]), dtype=q.dtype, device=q.device)
    grid, constants = _grid_and_constants(q.shape, k.shape[1], q.dtype)
    with gpu.on(q):
        short_probabilities_kernel[grid](
            q,
            k,
            weights,
            _scale(width),
            positions,
            heads,
            *q.stride()[:4],
            *k.stride()[:4],
            **constants,
        )
    return weights


def apply(weights: Tensor, v: Tensor) -> Tensor:
    rows, positions, heads, n, m = weights.shape
    shape = (v.shape[0], n, *v.shape[2:])
    out = torch.empty(shape, dtype=v.dtype, device=v.device)
    grid, constants = _grid_and_constants((rows, *shape[1:]), m, v.dtype)
    with gpu.on(v):
        apply_probabilities_kernel[grid](
            weights,
            v,
            out,
            rows,
            v.shape[0] // rows,
            positions,
            heads,
            *v.stride()[:4],
            **constants,
        )
    return out


def _scale(width: int) -> float:
    # 2^(x log2 e) is e^x
    return width**-0.5 * math.log2(math.e)


def _grid_and_constants(
    shape: tuple[int, ...], m: int, dtype: torch.dtype
) -> tuple[tuple[int], dict[str, int]]:
    rows, n, positions, heads, width = shape
    constants, options = _constants(n, m, width)
    blocks = triton.cdiv(positions * heads, constants["TOGETHER"])
    upcast = gpu.interpreted() and dtype == torch.bfloat16
    return (blocks * rows,), {**constants, "UPCAST": upcast, **options}


def _constants(n: int, m: int, width: int) -> tuple[dict[str, int], dict[str, int]]:
    # a matrix product takes powers of two, 16 at least
    padded = max(16, triton.next_power_of_2(max(n, m)))
    tiles = _TILES[padded]
    constants = dict(
        N=n,
        M=m,
        WIDTH=width,
        PADDED=padded,
        PADDED_WIDTH=max(16, triton.next_power_of_2(width)),
        TOGETHER=tiles.together,
    )
    # more stages cost registers and win nothing: other programs fill the waiting
    return constants, {"num_warps": tiles.warps, "num_stages": 1}


def small(q: Tensor, k: Tensor, v: Tensor | None = None) -> Small:
    """A few sequences of the same lengths, by several programs; without v, the probabilities'."""
    rows, n, positions, heads, width = q.shape
    groups = None if v is None else v.shape[0] // rows
    rows, among = alike(rows, 2), (alike(positions, 5), alike(heads, 3, width), width)
    shapes = [(rows, n, *among), (rows, k.shape[1], *among)]
    if groups is None:
        return Small(tuple(shapes), part=(n, k.shape[1]))
    shapes.append((alike(groups, 2) * rows, k.shape[1], *among))
    return Small(tuple(shapes), part=(n, 1, 1, width))


def small_apply(weights: Tensor, v: Tensor) -> Small:
    """The same of probabilities and values; weights of any sign are as good."""
    rows, positions, heads, n, m = weights.shape
    groups, width = v.shape[0] // rows, v.shape[-1]
    rows, positions, heads = alike(rows, 2), alike(positions, 5), alike(heads, 3, width)
    values = alike(groups, 2) * rows, m, positions, heads, width
    return Small(((rows, positions, heads, n, m), values), part=(n, 1, 1, width))


def configurations() -> Iterator[Configuration]:
    """Every padded number of tokens, for heads of 64, and what bounds the rest."""
    everywhere = tuple(TARGETS)
    plain = "short_attention", short_attention_kernel
    kept = "short_attention probabilities", short_probabilities_kernel
    applied = "short_attention applied", apply_probabilities_kernel
    for (name, kernel), tokens, width, dtype, targets in (
        (plain, 16, 64, "bf16", everywhere),
        (plain, 16, 64, "fp16", ("sm_90",)),
        (plain, 32, 64, "bf16", ("sm_80", "sm_90")),
        (plain, 32, 64, "fp32", ("sm_80", "sm_90")),
        (plain, 64, 64, "bf16", ("sm_80", "sm_90", "sm_100")),
        (plain, 128, 64, "bf16", ("sm_90", "sm_100", "gfx942")),
        (plain, 128, 128, "bf16", ("sm_80",)),
        (kept, 16, 64, "bf16", ("sm_90", "gfx942")),
        (applied, 16, 64, "bf16", ("sm_90", "gfx942")),
    ):
        constants, options = _constants(tokens, tokens, width)
        constants["UPCAST"] = False
        others = [x for x in kernel.arg_names if x not in constants]
        types = {x: f"*{dtype}" if x.endswith("_ptr") else "i32" for x in others}
        if "scale" in types:
            types["scale"] = "fp32"
        tensor_core = "HMMA" if constants["TOGETHER"] > 1 else "HGMMA"
        yield Configuration(
            f"{name} n={tokens} d={width} {dtype}",
            kernel,
            types,
            constants,
            options,
            divisible=tuple(x for x in others if x[:2] in ("q_", "k_", "v_") and types[x] == "i32"),
            instruction=None if dtype == "fp32" else tensor_core,
            targets=targets,
        )
