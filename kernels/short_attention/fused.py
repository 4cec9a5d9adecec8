"""Short attention in Triton, several sequences in each program, whole or in two halves (README.md).

A sequence is the tokens of one head at one position. Heads are innermost in memory, so sequences
with consecutive numbers are neighbors in memory too.
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
    """Multiplies two matrices per sequence."""
    if a.shape[0] == 1:
        # a three-dimensional product of a single matrix would not run on the tensor cores
        a, b = tl.reshape(a, a.shape[1:]), tl.reshape(b, b.shape[1:])
        out = tl.expand_dims(tl.dot(a, b, input_precision="ieee"), 0)
    else:
        out = tl.dot(a, b, input_precision="ieee")
    return out


@triton.jit
def _place(
    positions,
    heads,
    HEAD_DIM: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Finds the TOGETHER sequences of one row that this program computes.

    Returns the row; each sequence's number in the row, position and head, (TOGETHER, 1, 1); the
    head's dims (1, 1, PADDED_HEAD_DIM); and the mask of those that exist.
    """
    sequences = positions * heads
    blocks = tl.cdiv(sequences, TOGETHER)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = tl.program_id(0) % blocks * TOGETHER + tl.arange(0, TOGETHER)[:, None, None]
    across = tl.arange(0, PADDED_HEAD_DIM)[None, None, :]
    inside = (sequence < sequences) & (across < HEAD_DIM)
    return row, sequence, sequence // heads, sequence % heads, across, inside


@triton.jit
def _weights(
    weights_ptr, row, sequence, sequences, N: tl.constexpr, M: tl.constexpr, PADDED: tl.constexpr
):
    """Pointers and mask of the probabilities, contiguous (rows, sequences, N, M)."""
    query = tl.arange(0, PADDED)[None, :, None]
    key = tl.arange(0, PADDED)[None, None, :]
    ptrs = weights_ptr + row * sequences * N * M + sequence * (N * M) + query * M + key
    return ptrs, (sequence < sequences) & (query < N) & (key < M)


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
    """Computes probabilities (TOGETHER, PADDED, PADDED) from pointers to the first tokens."""
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
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Applies the same weights to every group's values; `within`: a sequence's offset in a row."""
    token = tl.arange(0, PADDED)[None, :, None]
    size = sequences * HEAD_DIM
    for group in range(groups):
        row = first + group * rows
        v_ptrs = v_ptr + row * v_row + within + token * v_token + across
        values = tl.load(v_ptrs, mask=inside & (token < M), other=0.0)
        out = _product(weights, _wide(values, UPCAST))
        # the output is contiguous (groups rows, n, sequences, head_dim)
        out_ptrs = out_ptr + row * N * size + token * size + sequence * HEAD_DIM + across
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
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Computes `short_attention` for TOGETHER sequences of one row and all groups of values.

    Shapes are those of `anyv2v.kernels.short_attention.short_attention`; arguments such as q_row
    are strides in elements. `scale` is log2(e) / sqrt(d), because the kernel computes powers of 2.
    N, M: numbers of queries and keys, both padded to PADDED; HEAD_DIM is padded to PADDED_HEAD_DIM.
    UPCAST: multiply in float32, as Triton's interpreter needs for bfloat16.
    """
    row, sequence, position, head, across, inside = _place(
        positions, heads, HEAD_DIM, PADDED_HEAD_DIM, TOGETHER
    )

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
        positions * heads,
        within,
        v_row,
        v_token,
        across,
        inside,
        N,
        M,
        HEAD_DIM,
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
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Writes the attention probabilities of TOGETHER sequences of one row, (rows, sequences, N, M).

    The arguments are those of `short_attention_kernel`.
    """
    row, sequence, position, head, across, inside = _place(
        positions, heads, HEAD_DIM, PADDED_HEAD_DIM, TOGETHER
    )

    q_ptrs = q_ptr + row * q_row + position * q_position + head * q_head + across
    k_ptrs = k_ptr + row * k_row + position * k_position + head * k_head + across
    weights = _softmax(q_ptrs, k_ptrs, q_token, k_token, scale, inside, N, M, PADDED, UPCAST)
    ptrs, mask = _weights(weights_ptr, row, sequence, positions * heads, N, M, PADDED)
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
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    TOGETHER: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiplies recorded probabilities by values: TOGETHER sequences of one row, all groups.

    `weights_ptr` points to probabilities as `short_probabilities_kernel` writes them. The other
    arguments are those of `short_attention_kernel`.
    """
    row, sequence, position, head, across, inside = _place(
        positions, heads, HEAD_DIM, PADDED_HEAD_DIM, TOGETHER
    )

    ptrs, mask = _weights(weights_ptr, row, sequence, positions * heads, N, M, PADDED)
    weights = _wide(tl.load(ptrs, mask=mask, other=0.0), UPCAST)
    within = position * v_position + head * v_head
    _mix(
        weights,
        v_ptr,
        out_ptr,
        row,
        rows,
        groups,
        sequence,
        positions * heads,
        within,
        v_row,
        v_token,
        across,
        inside,
        N,
        M,
        HEAD_DIM,
        PADDED,
        UPCAST,
    )


@dataclass(frozen=True)
class Tiles:
    """How many sequences (see this module) one program computes, and with how many warps."""

    together: int
    """Sequences per program."""
    warps: int
    """Triton's num_warps."""


# tokens, padded -> tiles: few registers, so that many programs wait for memory at once
_TILES = {16: Tiles(4, 4), 32: Tiles(2, 4), 64: Tiles(1, 8), 128: Tiles(1, 8)}
LONGEST = max(_TILES)
"""The most tokens that a sequence may have."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes `short_attention` by one Triton kernel.

    Returns softmax(q k^T / sqrt(d)) v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_attention`.
    """
    rows, n, positions, heads, head_dim = q.shape
    out = torch.empty((v.shape[0], *q.shape[1:]), dtype=q.dtype, device=q.device)
    grid, constants = _grid_and_constants(q.shape, k.shape[1], q.dtype)
    with gpu.on(q):
        short_attention_kernel[grid](
            q,
            k,
            v,
            out,
            _scale(head_dim),
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
    """Computes `short_probabilities` by one Triton kernel.

    Returns softmax(q k^T / sqrt(d)) at each position; the arguments are those of
    `anyv2v.kernels.short_attention.short_probabilities`.
    """
    rows, n, positions, heads, head_dim = q.shape
    weights = torch.empty((rows, positions, heads, n, k.shape[1]), dtype=q.dtype, device=q.device)
    grid, constants = _grid_and_constants(q.shape, k.shape[1], q.dtype)
    with gpu.on(q):
        short_probabilities_kernel[grid](
            q,
            k,
            weights,
            _scale(head_dim),
            positions,
            heads,
            *q.stride()[:4],
            *k.stride()[:4],
            **constants,
        )
    return weights


def apply(weights: Tensor, v: Tensor) -> Tensor:
    """Computes `apply_probabilities` by one Triton kernel.

    Returns the probabilities times v at each position; the arguments are those of
    `anyv2v.kernels.short_attention.apply_probabilities`.
    """
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


def _scale(head_dim: int) -> float:
    # 2^(x log2 e) is e^x
    return head_dim**-0.5 * math.log2(math.e)


def _grid_and_constants(
    shape: tuple[int, ...], m: int, dtype: torch.dtype
) -> tuple[tuple[int], dict[str, int]]:
    rows, n, positions, heads, head_dim = shape
    constants, options = _constants(n, m, head_dim)
    blocks = triton.cdiv(positions * heads, constants["TOGETHER"])
    upcast = gpu.interpreted() and dtype == torch.bfloat16
    return (blocks * rows,), {**constants, "UPCAST": upcast, **options}


def _constants(n: int, m: int, head_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    # a matrix product takes powers of two, 16 at least
    padded = max(16, triton.next_power_of_2(max(n, m)))
    tiles = _TILES[padded]
    constants = dict(
        N=n,
        M=m,
        HEAD_DIM=head_dim,
        PADDED=padded,
        PADDED_HEAD_DIM=max(16, triton.next_power_of_2(head_dim)),
        TOGETHER=tiles.together,
    )
    # more stages cost registers and gain nothing: other programs run while one waits for memory
    return constants, {"num_warps": tiles.warps, "num_stages": 1}


def small(q: Tensor, k: Tensor, v: Tensor | None = None) -> Small:
    """Returns the small call that stands for this call when the kernels are checked.

    It has a few sequences with as many tokens as here, computed by several programs. Without v it
    is a call of `probabilities`, else one of `attention`.
    """
    rows, n, positions, heads, head_dim = q.shape
    groups = None if v is None else v.shape[0] // rows
    rows, among = alike(rows, 2), (alike(positions, 5), alike(heads, 3, head_dim), head_dim)
    shapes = [(rows, n, *among), (rows, k.shape[1], *among)]
    if groups is None:
        return Small(tuple(shapes), part=(n, k.shape[1]))
    shapes.append((alike(groups, 2) * rows, k.shape[1], *among))
    return Small(tuple(shapes), part=(n, 1, 1, head_dim))


def small_apply(weights: Tensor, v: Tensor) -> Small:
    """Returns the small call that stands for this call of `apply` when the kernel is checked.

    Its random weights may be negative, unlike probabilities, which makes no difference to the
    kernel.
    """
    rows, positions, heads, n, m = weights.shape
    groups, head_dim = v.shape[0] // rows, v.shape[-1]
    rows, positions, heads = alike(rows, 2), alike(positions, 5), alike(heads, 3, head_dim)
    values = alike(groups, 2) * rows, m, positions, heads, head_dim
    return Small(((rows, positions, heads, n, m), values), part=(n, 1, 1, head_dim))


def configurations() -> Iterator[Configuration]:
    """Yields configurations of the three kernels for aot.py.

    These are `short_attention_kernel` with every padded number of tokens and a head dim of 64, and
    examples of other dtypes, a head dim of 128, and the other two kernels.
    """
    everywhere = tuple(TARGETS)
    plain = "short_attention", short_attention_kernel
    kept = "short_attention probabilities", short_probabilities_kernel
    applied = "short_attention applied", apply_probabilities_kernel
    for (name, kernel), tokens, head_dim, dtype, targets in (
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
        constants, options = _constants(tokens, tokens, head_dim)
        constants["UPCAST"] = False
        others = [x for x in kernel.arg_names if x not in constants]
        types = {x: f"*{dtype}" if x.endswith("_ptr") else "i32" for x in others}
        if "scale" in types:
            types["scale"] = "fp32"
        tensor_core = "HMMA" if constants["TOGETHER"] > 1 else "HGMMA"
        yield Configuration(
            f"{name} n={tokens} d={head_dim} {dtype}",
            kernel,
            types,
            constants,
            options,
            divisible=tuple(x for x in others if x[:2] in ("q_", "k_", "v_") and types[x] == "i32"),
            instruction=None if dtype == "fp32" else tensor_core,
            targets=targets,
        )
