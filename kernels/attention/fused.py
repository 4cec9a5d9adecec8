"""Attention as one Triton kernel, with one softmax for up to four groups of values (README.md)."""

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
def _load(ptrs, mask, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    if MASKED:
        x = tl.load(ptrs, mask=mask, other=0.0)
    else:
        x = tl.load(ptrs)
    return _wide(x, UPCAST)


@triton.jit
def _mixed(mix, keep, weights, v_ptrs, mask, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """Adds one tile of a group's values, weighted, to the group's accumulator."""
    values = _load(v_ptrs, mask, MASKED, UPCAST)
    return tl.dot(weights, values, mix * keep[:, None], input_precision="ieee")


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    scale,
    rows,
    heads,
    n,
    m,
    q_row,
    q_token,
    q_head,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Computes one tile of QUERIES queries of one head and row, for GROUPS groups of values.

    Shapes are those of `anyv2v.kernels.attention.attention`; arguments such as q_row are strides in
    elements. `scale` is log2(e) / sqrt(d), because the kernel computes powers of 2. KEYS: keys in
    each tile of the loop. WHOLE: m is a multiple of KEYS, so that no tile has keys to mask.
    PADDED_HEAD_DIM: HEAD_DIM rounded up to a power of two, at least 16. UPCAST: multiply in
    float32, as Triton's interpreter needs for bfloat16.
    """
    MASKED: tl.constexpr = not WHOLE or PADDED_HEAD_DIM > HEAD_DIM
    dtype = out_ptr.dtype.element_ty
    tiles = tl.cdiv(n, QUERIES)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    row = (tl.program_id(0) // tiles // heads).to(tl.int64)

    query = tile * QUERIES + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    across = tl.arange(0, PADDED_HEAD_DIM)
    inside = across < HEAD_DIM
    q_ptrs = q_ptr + row * q_row + head * q_head + query[:, None] * q_token + across[None, :]
    k_base = k_ptr + row * k_row + head * k_head
    v_base = v_ptr + head * v_head

    q = _wide(tl.load(q_ptrs, mask=(query < n)[:, None] & inside[None, :], other=0.0), UPCAST)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mix0 = tl.zeros([QUERIES, PADDED_HEAD_DIM], tl.float32)
    mix1 = tl.zeros([QUERIES, PADDED_HEAD_DIM], tl.float32)
    mix2 = tl.zeros([QUERIES, PADDED_HEAD_DIM], tl.float32)
    mix3 = tl.zeros([QUERIES, PADDED_HEAD_DIM], tl.float32)

    end = m
    if CAUSAL:
        end = tl.minimum(m, (tile + 1) * QUERIES)
    for start in range(0, end, KEYS):
        at = start + key
        k_ptrs = k_base + at[None, :] * k_token + across[:, None]
        k = _load(k_ptrs, (at < m)[None, :] & inside[:, None], MASKED, UPCAST)
        scores = tl.dot(q, k, input_precision="ieee")
        if not WHOLE:
            scores = tl.where((at < m)[None, :], scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(at[None, :] <= query[:, None], scores, float("-inf"))

        higher = tl.maximum(best, tl.max(scores, 1) * scale)
        keep = tl.exp2(best - higher)
        weights = tl.exp2(scores * scale - higher[:, None])
        total = total * keep + tl.sum(weights, 1)
        best = higher

        weights = _wide(weights.to(dtype), UPCAST)
        within = at[:, None] * v_token + across[None, :]
        mask = (at < m)[:, None] & inside[None, :]
        mix0 = _mixed(mix0, keep, weights, v_base + row * v_row + within, mask, MASKED, UPCAST)
        if GROUPS > 1:
            ptrs = v_base + (row + rows) * v_row + within
            mix1 = _mixed(mix1, keep, weights, ptrs, mask, MASKED, UPCAST)
        if GROUPS > 2:
            ptrs = v_base + (row + 2 * rows) * v_row + within
            mix2 = _mixed(mix2, keep, weights, ptrs, mask, MASKED, UPCAST)
        if GROUPS > 3:
            ptrs = v_base + (row + 3 * rows) * v_row + within
            mix3 = _mixed(mix3, keep, weights, ptrs, mask, MASKED, UPCAST)

    share = (1 / total)[:, None]
    # the output is contiguous (groups rows, n, heads, head_dim)
    within = (query[:, None] * heads + head) * HEAD_DIM + across[None, :]
    mask = (query < n)[:, None] & inside[None, :]
    size = n * heads * HEAD_DIM
    tl.store(out_ptr + row * size + within, (mix0 * share).to(dtype), mask=mask)
    if GROUPS > 1:
        tl.store(out_ptr + (row + rows) * size + within, (mix1 * share).to(dtype), mask=mask)
    if GROUPS > 2:
        tl.store(out_ptr + (row + 2 * rows) * size + within, (mix2 * share).to(dtype), mask=mask)
    if GROUPS > 3:
        tl.store(out_ptr + (row + 3 * rows) * size + within, (mix3 * share).to(dtype), mask=mask)


@dataclass(frozen=True)
class Tiles:
    """The size of a tile, and the compiler's options that go with it."""

    queries: int
    """Queries per tile."""
    keys: int
    """Keys per tile."""
    warps: int
    """Triton's num_warps."""
    stages: int
    """Triton's num_stages."""


# groups in one launch -> tiles: as large as registers allow, for heads of up to 64
_HOPPER = {
    1: Tiles(128, 128, 8, 3),
    2: Tiles(128, 64, 8, 3),
    3: Tiles(128, 64, 8, 3),
    4: Tiles(128, 64, 8, 2),
}
_NARROW = {
    "interpreter": dict.fromkeys((1, 2, 3, 4), Tiles(64, 64, 4, 1)),
    "sm_80": {1: Tiles(128, 64, 8, 3), 2: Tiles(128, 64, 8, 3), 3: Tiles(128, 32, 8, 2)},
    "sm_90": _HOPPER,
    "sm_100": _HOPPER,
    "gfx942": dict.fromkeys((1, 2, 3, 4), Tiles(128, 64, 8, 2)),
}
# heads of 65 to 128
_BROAD = {1: Tiles(128, 32, 8, 2), 2: Tiles(64, 32, 8, 2)}
# no tensor cores: every product keeps whole operands in registers
_FLOAT32 = {1: Tiles(32, 32, 8, 1)}


def tiles_by_groups(family: str, head_dim: int, dtype: torch.dtype) -> dict[int, Tiles]:
    """Returns number of groups of values in one launch -> tiles, for each number that is possible.

    family: "interpreter", or a key of `aot.TARGETS`.
    """
    if family == "interpreter":
        return _NARROW[family]
    if dtype == torch.float32:
        return _FLOAT32
    return _NARROW[family] if head_dim <= 64 else _BROAD


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Computes `anyv2v.kernels.attention.attention` by the Triton kernel, with the same arguments.

    As many groups of values as registers allow are computed in one launch.
    """
    rows, n, heads, head_dim = q.shape
    groups = v.shape[0] // rows
    out = torch.empty((v.shape[0], n, heads, head_dim), dtype=q.dtype, device=q.device)
    table = _table(q)
    launches = -(-groups // max(table))
    with gpu.on(q):
        for i in range(launches):
            # the groups of each launch, as even as possible
            first, last = i * groups // launches, (i + 1) * groups // launches
            part = slice(first * rows, last * rows)
            _launch(q, k, v[part], out[part], table[last - first], causal)
    return out


def _table(q: Tensor) -> dict[int, Tiles]:
    family = "interpreter" if q.device.type == "cpu" else gpu.family(q.device)
    return tiles_by_groups(family, q.shape[-1], q.dtype)


def small(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Small:
    """Returns the small call that stands for this call when the kernel is checked.

    It has two tiles of queries and three of keys, of which the last is as ragged as it is here.
    """
    rows, n, heads, head_dim = q.shape
    m, groups, table = k.shape[1], v.shape[0] // rows, _table(q)
    queries, keys = (max(getattr(t, x) for t in table.values()) for x in ("queries", "keys"))
    rows, heads, n = alike(rows, 2), alike(heads, 2, head_dim), alike(n, queries + 1)
    # what is left over decides whether tiles are whole, of all sizes: they are powers of two
    m = 1 if m == 1 else 2 * keys + (m % keys or keys)
    shapes = (
        (rows, n, heads, head_dim),
        (rows, m, heads, head_dim),
        (groups * rows, m, heads, head_dim),
    )
    return Small(shapes, options=(("causal", causal),), part=(16, 1, head_dim))


def _launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, tiles: Tiles, causal: bool) -> None:
    rows, n, heads, head_dim = q.shape
    attention_kernel[(triton.cdiv(n, tiles.queries) * heads * rows,)](
        q,
        k,
        v,
        out,
        # 2^(x log2 e) is e^x
        head_dim**-0.5 * math.log2(math.e),
        rows,
        heads,
        n,
        k.shape[1],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        **_constants(v.shape[0] // rows, head_dim, tiles, k.shape[1] % tiles.keys == 0, causal),
        UPCAST=gpu.interpreted() and q.dtype == torch.bfloat16,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _constants(
    groups: int, head_dim: int, tiles: Tiles, whole: bool, causal: bool
) -> dict[str, int]:
    return dict(
        GROUPS=groups,
        HEAD_DIM=head_dim,
        # a matrix product takes powers of two, 16 at least
        PADDED_HEAD_DIM=max(16, triton.next_power_of_2(head_dim)),
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        WHOLE=whole,
        CAUSAL=causal,
    )


def configurations() -> Iterator[Configuration]:
    """Yields configurations for aot.py.

    These are all tile sizes for several groups of values with a head dim of 64 in bfloat16, and
    examples of masked tiles, the other dtypes, one group, and a head dim of 128.
    """
    # target, groups, head_dim, dtype, whole
    cases = [(name, g, 64, "bf16", True) for name in TARGETS for g in _NARROW[name] if g > 1]
    cases += [(name, 3, 64, "bf16", False) for name in TARGETS]
    cases += [(name, 3, 64, "fp16", True) for name in ("sm_80", "sm_90")]
    cases += [(name, 2, 128, "bf16", False) for name in ("sm_80", "sm_90")]
    cases += [("sm_90", 1, 64, "bf16", False), ("sm_80", 1, 128, "fp32", False)]
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    targets: dict[tuple, list[str]] = {}
    for name, groups, head_dim, dtype, whole in cases:
        tiles = tiles_by_groups(name, head_dim, dtypes[dtype])[groups]
        targets.setdefault((groups, head_dim, dtype, whole, tiles), []).append(name)
    pointers = ("q_ptr", "k_ptr", "v_ptr", "out_ptr")
    sizes = ("rows", "heads", "n", "m")
    strides = tuple(f"{x}_{dim}" for x in "qkv" for dim in ("row", "token", "head"))
    for (groups, head_dim, dtype, whole, tiles), names in targets.items():
        tile = f"{tiles.queries}x{tiles.keys}{'' if whole else ' masked'}"
        yield Configuration(
            f"attention g={groups} d={head_dim} {dtype} {tile}",
            attention_kernel,
            dict.fromkeys(pointers, f"*{dtype}")
            | {"scale": "fp32"}
            | dict.fromkeys((*sizes, *strides), "i32"),
            {**_constants(groups, head_dim, tiles, whole, False), "UPCAST": False},
            {"num_warps": tiles.warps, "num_stages": tiles.stages},
            divisible=strides,
            instruction=None if dtype == "fp32" else "HGMMA",
            targets=tuple(names),
        )
