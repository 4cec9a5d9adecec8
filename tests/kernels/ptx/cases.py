"""Kernels as compiled against float64: what a process without Triton's interpreter runs.

Each case launches as a forward does and gives the relative error of each answer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import anyv2v.kernels.attention.fused as whole_attention
import anyv2v.kernels.geglu.fused as geglu
import anyv2v.kernels.group_norm_silu.fused as group_norm_silu
import anyv2v.kernels.layer_norm.fused as layer_normalisation
import anyv2v.kernels.residual_sum.fused as sums
import anyv2v.kernels.short_attention.fused as short
from anyv2v.kernels.attention.reference import reference as attention_reference
from anyv2v.kernels.group_norm_silu.reference import reference as group_norm_reference
from anyv2v.kernels.short_attention import reference as short_reference
from tests.kernels.ptx.launch import Values, interpreted, rewritten
from tests.kernels.ptx.memory import Fault
from tests.kernels.truth import draw, within_nan
from tests.oracles.golden import relative_error

Errors = dict[str, float]
EPS = 1e-5


def placed(x: Tensor) -> Tensor:
    """Within something wider, as the projections of a layer lie: all strides multiples of 16."""
    wide = F.pad(x, (16, 16, *(1, 1) * (x.ndim - 1)), value=float("nan"))
    return wide[(*[slice(1, -1)] * (x.ndim - 1), slice(16, -16))]


def run(kernel: Callable, *inputs: Any, **options: Any) -> Any:
    """Its answer; that it leaves its inputs alone is checked."""
    tensors = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor)]
    before = [x.clone() for x in tensors]
    answer = kernel(*inputs, **options)
    if not all(map(torch.equal, tensors, before)):
        raise Fault("an input was written")
    return answer


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.double() for x in tensors]


def attention(
    dtype: torch.dtype,
    g: int,
    d: int,
    m: int = 192,
    *,
    n: int = 150,
    rows: int = 1,
    causal: bool = False,
    place: Callable[[Tensor], Tensor] = placed,
) -> Errors:
    shapes = (rows, n, 2, d), (rows, m, 2, d), (g * rows, m, 2, d)
    q, k, v = (place(draw(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes))
    truth = attention_reference(*wide(q, k, v), causal=causal)
    return {"out": relative_error(run(whole_attention.attention, q, k, v, causal=causal), truth)}


def _short_inputs(
    dtype: torch.dtype, g: int, frames: int, d: int, rows: int, place: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    # 15 sequences of a row: no multiple of what a program takes
    shapes = (rows, frames, 5, 3, d), (rows, frames, 5, 3, d), (g * rows, frames, 5, 3, d)
    return [place(draw(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)]


def short_attention(
    dtype: torch.dtype, g: int, frames: int, d: int, *, rows: int = 1, place: Callable = placed
) -> Errors:
    q, k, v = _short_inputs(dtype, g, frames, d, rows, place)
    truth = short_reference.reference(*wide(q, k, v))
    return {"out": relative_error(run(short.attention, q, k, v), truth)}


def probabilities(dtype: torch.dtype, frames: int, d: int, *, rows: int = 1) -> Errors:
    q, k, _ = _short_inputs(dtype, 1, frames, d, rows, placed)
    truth = short_reference.probabilities(*wide(q, k))
    return {"weights": relative_error(run(short.probabilities, q, k), truth)}


def apply(dtype: torch.dtype, g: int, frames: int, d: int, *, rows: int = 1) -> Errors:
    q, k, v = _short_inputs(dtype, g, frames, d, rows, placed)
    weights = short_reference.probabilities(*wide(q, k)).to(dtype)
    truth = short_reference.apply(*wide(weights, v))
    return {"out": relative_error(run(short.apply, weights, v), truth)}


def group_norm(
    dtype: torch.dtype, n: int, c: int, groups: int, *, shifts: int = 0, whole: bool = True
) -> Errors:
    x = (3 + draw(2, n, c, seed=0)).to(dtype)
    weight, bias = (draw(c, seed=i).to(dtype) for i in (1, 2))
    shift = draw(shifts, c, seed=3).to(dtype) if shifts else None
    *exact, exact_shift = wide(x, weight, bias, shift)
    truth = group_norm_reference(*exact, groups, EPS, shift=exact_shift)
    limit = group_norm_silu.WHOLE
    group_norm_silu.WHOLE = limit if whole else 0
    try:
        ours = run(group_norm_silu.fused, x, weight, bias, groups, EPS, shift=shift)
    finally:
        group_norm_silu.WHOLE = limit
    return {"y": relative_error(ours, truth)}


def layer_norm(dtype: torch.dtype, rows: int, width: int) -> Errors:
    x, weight, bias = _rows_and_parameters(dtype, rows, width)
    truth = F.layer_norm(x.double(), (width,), *wide(weight, bias), EPS)
    return {"y": relative_error(run(layer_normalisation.fused, x, weight, bias, EPS), truth)}


def add_layer_norm(dtype: torch.dtype, rows: int, width: int) -> Errors:
    x, weight, bias = _rows_and_parameters(dtype, rows, width)
    branch = draw(rows, width, seed=3).to(dtype)
    total, y = run(layer_normalisation.add_fused, x, branch, weight, bias, EPS)
    # the sum is rounded once, and what is normalised is the rounded one
    truth = F.layer_norm(total.double(), (width,), *wide(weight, bias), EPS)
    exact = (x.float() + branch.float()).to(dtype)
    return {"total": relative_error(total, exact), "y": relative_error(y, truth)}


def _rows_and_parameters(dtype: torch.dtype, rows: int, width: int) -> list[Tensor]:
    shapes = (rows, width), (width,), (width,)
    return [(2 + draw(*shape, seed=i)).to(dtype) for i, shape in enumerate(shapes)]


def gate(dtype: torch.dtype, rows: int, width: int) -> Errors:
    # both branches of erf
    h = (2 * draw(rows, 2 * width, seed=0)).to(dtype)
    value, gates = h.double().chunk(2, dim=1)
    return {"y": relative_error(run(geglu.gate, h), value * F.gelu(gates))}


def residual_sum(dtype: torch.dtype, rows: int, width: int) -> Errors:
    x, _, bias = _rows_and_parameters(dtype, rows, width)
    branch = draw(rows, width, seed=3).to(dtype)
    x64, branch64, bias64 = wide(x, branch, bias)
    return {"y": relative_error(run(sums.fused, x, branch, bias), x64 + branch64 + bias64)}


CASES = {
    case.__name__: case
    for case in (
        attention,
        short_attention,
        probabilities,
        apply,
        group_norm,
        layer_norm,
        add_layer_norm,
        gate,
        residual_sum,
    )
}
KERNELS = {
    "attention": whole_attention.attention_kernel,
    "probabilities": short.short_probabilities_kernel,
    "apply": short.apply_probabilities_kernel,
    "gate": geglu.gate_kernel,
}


def _without(ptx: str, operation: str, number: int | None) -> str:
    """The PTX less one instruction of a kind, or less all of them."""
    found = list(re.finditer(rf"\b{re.escape(operation)}\b[^;]*;", ptx))
    for match in reversed(found if number is None else [found[number]]):
        ptx = ptx[: match.start()] + ptx[match.end() :]
    return ptx


def check(
    case: str,
    *args: Any,
    odd_strides: bool = False,
    remove: tuple[str, int | None] | None = None,
    add: tuple[str, int] | None = None,
    replace: tuple[str, str] | None = None,
    within: str | None = None,
    **options: Any,
) -> Errors:
    """Run a case, perhaps with a fault.

    `remove`: an operation and which of its instructions is taken out of the PTX, None for all;
    `add`: an argument and what is added to it; `replace`: a piece of the kernel's source and what
    stands for it; `within`: the function of the kernel's module whose source that is, if it is not
    the kernel's own.
    """

    def change(ptx: str, values: Values) -> tuple[str, Values]:
        if remove is not None:
            ptx = _without(ptx, *remove)
        if add is not None:
            values = values | {add[0]: values[add[0]] + add[1]}
        return ptx, values

    if odd_strides:
        options["place"] = within_nan
    with contextlib.ExitStack() as stack:
        if replace is not None:
            kernel = KERNELS[case]
            function = None if within is None else kernel.fn.__globals__[within]
            stack.enter_context(rewritten(kernel, *replace, within=function))
        stack.enter_context(interpreted(change))
        stack.enter_context(_tiles_of_a_gpu())
        return CASES[case](*args, **options)


def count(operation: str, case: str, *args: Any, **options: Any) -> int:
    """Instructions of a kind in the kernel of a case."""
    counts = []

    def look(ptx: str, values: Values) -> tuple[str, Values]:
        counts.append(len(re.findall(rf"\b{re.escape(operation)}\b", ptx)))
        return ptx, values

    with interpreted(look), _tiles_of_a_gpu():
        CASES[case](*args, **options)
    return counts[0]


@contextlib.contextmanager
def _tiles_of_a_gpu() -> Any:
    """Attention would take tensors of the CPU for those of Triton's interpreter."""
    table = whole_attention.tiles_by_groups
    whole_attention.tiles_by_groups = lambda family, *rest: table("sm_90", *rest)
    try:
        yield
    finally:
        whole_attention.tiles_by_groups = table
