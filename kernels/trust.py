"""Checks every kernel against its definition before its first launch.

A call is shrunk to a small one (`Small`) that Triton compiles to the same code: its constants, and
which of its integers are divisible by 16, stay the same. The small call is run and compared with
the definition in float64. Within this process the verdict holds for all calls that shrink to the
same small one. The environment variable ANYV2V_CHECK is 0 (never check), 1 (check) or raise (check,
and raise an error in place of a warning). Without it, kernels are checked on a GPU but not in
Triton's interpreter, which is for tests.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from anyv2v.kernels.choose import Implementation

EPS = 0.1
"""The eps of normalizations in small calls: so large that a kernel which misplaces it fails."""


class Untrusted(RuntimeError):
    """Raised if an implementation fails its check and ANYV2V_CHECK is "raise"."""


@dataclass(frozen=True)
class Small:
    """A small call that is compiled to the same code as the call that it was made from."""

    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the first arguments, which are tensors."""
    rest: tuple[Hashable, ...] = ()
    """The other positional arguments."""
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments; a tuple is the shape of a tensor."""
    part: tuple[int, ...] = (64,)
    """Shape, in the last dims of the result, of the parts whose errors are measured one by one:
    each part lies in one tile, and is large enough to average out rounding."""
    offset: float = 0.0
    """Mean of the random tensors with more than two dims."""

    def draw(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
        """Returns positional and keyword arguments, with normally distributed tensors.

        The values are the same at every call, and PyTorch's own generators are not used. Vectors
        have mean 1 and standard deviation 1/4, matrices mean 0 and standard deviation 1 /
        sqrt(columns), other tensors mean `offset` and standard deviation 1.
        """
        generator = torch.Generator(device).manual_seed(0)

        def drawn(shape: tuple[int, ...]) -> Tensor:
            x = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            if len(shape) == 1:
                # no channel is so small that an error in it would go unnoticed
                x = 1 + x / 4
            elif len(shape) == 2:
                x = x * shape[-1] ** -0.5
            else:
                x = x + self.offset
            return x.to(dtype)

        options = {k: drawn(v) if isinstance(v, tuple) else v for k, v in self.options}
        return [*map(drawn, self.shapes), *self.rest], options


def alike(n: int, least: int, *units: int) -> int:
    """Returns the smallest number from `least` up for which Triton compiles the same code as for n.

    Triton compiles 1 as a constant, and specializes other integers on whether 16 divides them. So
    the result is 1 for 1; otherwise 16 divides it, and each of its products with `units`, exactly
    where 16 divides n and the same product of n.
    """

    def divisible(x: int) -> list[bool]:
        return [x * unit % 16 == 0 for unit in (1, *units)]

    if n == 1:
        return 1
    return next(x for x in count(max(least, 2)) if divisible(x) == divisible(n))


def bound(dtype: torch.dtype) -> float:
    """Returns the largest relative error, ||error|| / ||truth||, that a result in `dtype` may have.

    For half precision that is the dtype's eps: one rounding of the result and one of the weights.
    For float32 it is 1e-6, the error of a sum.
    """
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps


def bounds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the relative errors that a check allows: (of the whole result, of each part of it).

    Rounding averages out less within a part, so in float32 a part may be off ten times as much;
    where PyTorch may use TF32 on a GPU, both bounds are 2^-10. In half precision a part gets no
    more than the whole: a tile that is 1 % too large must fail, and eps of bfloat16 is 0.8 %.
    """
    if dtype == torch.float32:
        if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
            # PyTorch's matrix product before GEGLU then keeps ten bits
            return 2**-10, 2**-10
        return bound(dtype), 10 * bound(dtype)
    # the interpreter truncates to bfloat16 where GPUs round
    cuts = device.type == "cpu" and dtype == torch.bfloat16
    return ((2 if cuts else 1) * bound(dtype),) * 2


@dataclass(frozen=True)
class Measured:
    """Relative errors of an implementation on a small call; NaN if there was no usable result."""

    error: float
    """||error|| / ||truth|| of the whole result, compared with the definition in float64."""
    part: float
    """The largest such error in any part of the result; `Small.part` is the shape of the parts."""
    bounds: tuple[float, float]
    """The largest allowed values of `error` and `part`."""
    seconds: float
    """Duration of the check, compilation included."""
    failure: str | None = None
    """The exception that was raised, or what is wrong with the result's shape or dtype; else
    None."""

    @property
    def wrong(self) -> str | None:
        """Why the implementation failed its check, or None if it passed."""
        if self.failure is not None:
            return self.failure
        # comparisons with NaN are False, so NaN fails
        if self.error <= self.bounds[0] and self.part <= self.bounds[1]:
            return None
        return (
            f"its result is off by {self.error:.2g} (allowed: {self.bounds[0]:.2g}), "
            f"where it is worst by {self.part:.2g} (allowed: {self.bounds[1]:.2g})"
        )


@torch.no_grad()
def measure(
    run: Callable[..., Any],
    reference: Callable[..., Any],
    small: Small,
    device: torch.device,
    dtype: torch.dtype,
    allowed: tuple[float, float],
) -> Measured:
    """Compares `run` on a small call with the definition `reference` on the same values in float64.

    The tensors are drawn on `device` in `dtype`. allowed: the bounds on the errors of the whole
    result and of each part. An exception in `run` becomes `Measured.failure`, but
    torch.OutOfMemoryError is raised, since it says nothing about the implementation.
    """
    start, nothing = time.perf_counter(), float("nan")
    args, options = small.draw(device, dtype)
    truth = _tensors(reference(*map(_wide, args), **{k: _wide(v) for k, v in options.items()}))
    # NaN in the memory that the allocator hands out next, so that unwritten results show
    poison = [torch.full_like(x, nothing, dtype=dtype) for x in truth]
    del poison
    try:
        with torch.autocast(device.type, enabled=False):
            ours = _tensors(run(*args, **options))
        failure = _other_kind(ours, truth, dtype)
        errors = [] if failure else [_errors(*x, small.part) for x in zip(ours, truth, strict=True)]
    except torch.OutOfMemoryError:
        # this says nothing about the kernel
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        failure, errors = f"{type(error).__name__}: {words[:300]}", []
    # amax, since max() may skip NaN
    error, part = torch.tensor(errors or [(nothing, nothing)]).amax(0).tolist()
    return Measured(error, part, allowed, time.perf_counter() - start, failure)


def objection(
    op: str,
    implementation: Implementation,
    reference: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> str | None:
    """Returns the reason why an implementation's check forbids a call, or None if it may run.

    The implementation is checked here if this code of it has not been checked before. op: name of
    the operation. reference: its definition. args, options: the arguments of the call.

    A failed check is a warning the first time, or raises `Untrusted` each time if ANYV2V_CHECK is
    "raise". No check runs while a compiler traces or for tensors without data, since nothing is
    launched then. A check cannot run during the capture of a CUDA graph, so code that was not
    checked before is refused there.
    """
    if implementation.small is None or torch.compiler.is_compiling():
        return None
    device, dtype = args[0].device, args[0].dtype
    mode = _mode(device)
    if mode == "0" or isinstance(args[0], FakeTensor):
        return None
    call = implementation, device, _signature(args), _signature(options.values())
    if call not in _verdicts:
        small = _shrunk(implementation, args, options)
        key = implementation, device, dtype, small
        if key not in _verdicts and _capturing(device):
            reason = "it was first met in a capture of a CUDA graph, where it cannot be checked"
            warnings.warn(f"{op}: {implementation.name}: {reason}", RuntimeWarning, stacklevel=3)
            return reason
        with _lock:
            if key not in _verdicts:
                _verdicts[key] = _judge(implementation, reference, small, device, dtype)
                if _verdicts[key] is not None and mode != "raise":
                    warnings.warn(
                        f"{op}: {implementation.name} failed its check in {dtype} on {device} "
                        f"and is not used for such calls: {_verdicts[key]}",
                        RuntimeWarning,
                        stacklevel=3,
                    )
        _verdicts[call] = _verdicts[key]
    reason = _verdicts[call]
    if reason is not None and mode == "raise":
        raise Untrusted(f"{op}: {implementation.name} failed its check: {reason}")
    return reason


_verdicts: dict[Hashable, str | None] = {}
"""Call, or small call -> why its check failed, or None; calls that were not checked are absent."""
_lock = threading.Lock()


def _shrunk(
    implementation: Implementation, args: tuple[Any, ...], options: dict[str, Any]
) -> Small | str:
    """Returns the small call, or the error that making it raised, such as a failed import."""
    try:
        return implementation.small(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _judge(
    implementation: Implementation,
    reference: Callable[..., Any],
    small: Small | str,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    if isinstance(small, str):
        return small
    allowed = bounds(device, dtype)
    wrong = measure(implementation.run, reference, small, device, dtype, allowed).wrong
    return wrong and f"{wrong}, on tensors of {', '.join(map(str, small.shapes))}"


def _mode(device: torch.device) -> str:
    mode = os.environ.get("ANYV2V_CHECK", "1" if device.type == "cuda" else "0")
    if mode not in ("0", "1", "raise"):
        raise ValueError(f"ANYV2V_CHECK: {mode!r} is not 0, 1 or raise")
    return mode


def _capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _signature(values: Iterable[Any]) -> tuple[Hashable, ...]:
    return tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values)


def _wide(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) else x


def _tensors(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _other_kind(
    ours: tuple[Tensor, ...], truth: tuple[Tensor, ...], dtype: torch.dtype
) -> str | None:
    got, wanted = [(x.shape, x.dtype) for x in ours], [(x.shape, dtype) for x in truth]
    return None if got == wanted else f"it gives {got}, not {wanted}"


def _errors(ours: Tensor, truth: Tensor, part: tuple[int, ...]) -> tuple[float, float]:
    """Returns the relative error of the whole and of the worst part.

    A part whose norm is below a quarter of the average is measured against that quarter.
    """
    off = ours.double() - truth
    quiet = truth.square().mean().sqrt() / 4 * math.prod(part) ** 0.5
    worst = _parts(off, part).norm(dim=-1) / _parts(truth, part).norm(dim=-1).clamp_min(quiet)
    error, worst = torch.stack([off.norm() / truth.norm(), worst.max()]).tolist()
    return error, worst


def _parts(x: Tensor, part: tuple[int, ...]) -> Tensor:
    """Cuts the last dims into parts (..., elements), and fills up the ragged ones with zeros."""
    ragged = [-n % size for n, size in zip(reversed(x.shape), reversed(part), strict=False)]
    x = F.pad(x, [amount for n in ragged for amount in (0, n)])
    for dim, size in enumerate(part, x.ndim - len(part)):
        x = x.unfold(dim, size, size)
    return x.flatten(-len(part))
