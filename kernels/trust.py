"""No kernel is trusted unseen: before its first launch it is compared with its definition.

What decides the code that Triton makes of a call, its constants and what it knows of its integers,
is kept in a small call of the same kind (`Small`); all else is shrunk. That one is run and compared
with the definition in float64. The verdict holds for the process and for all calls that shrink to
the same one. $ANYV2V_CHECK: 0 is never, 1 always, raise always and an error in place of a warning.
Without it kernels on a GPU are checked; in Triton's interpreter, which is for tests, none is.
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
"""Of norms in small calls: no constant to the compiler, and its place in the formula shows."""


class Untrusted(RuntimeError):
    """ANYV2V_CHECK=raise, and an implementation failed its check."""


@dataclass(frozen=True)
class Small:
    """A call that is small, and compiled to the same code as the one that it was made of."""

    shapes: tuple[tuple[int, ...], ...]
    """Of the tensors that come first."""
    rest: tuple[Hashable, ...] = ()
    """The arguments after them."""
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments; a tuple is the shape of a tensor."""
    part: tuple[int, ...] = (64,)
    """Of the answer's last dims, what no two tiles share: large enough for chance to even out."""
    offset: float = 0.0
    """The mean of tensors of more than two dims."""

    def draw(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
        """Arguments and options, the same each time; the state of no other generator changes."""
        generator = torch.Generator(device).manual_seed(0)

        def drawn(shape: tuple[int, ...]) -> Tensor:
            x = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            if len(shape) == 1:
                # no channel is so quiet that what is wrong with it would not show
                x = 1 + x / 4
            elif len(shape) == 2:
                x = x * shape[-1] ** -0.5
            else:
                x = x + self.offset
            return x.to(dtype)

        options = {k: drawn(v) if isinstance(v, tuple) else v for k, v in self.options}
        return [*map(drawn, self.shapes), *self.rest], options


def alike(n: int, least: int, *units: int) -> int:
    """`least` or a little more, and to Triton's compiler the same as n, alone and times each unit.

    It takes 1 for a constant, and knows of other integers whether 16 divides them.
    """

    def divisible(x: int) -> list[bool]:
        return [x * unit % 16 == 0 for unit in (1, *units)]

    if n == 1:
        return 1
    return next(x for x in count(max(least, 2)) if divisible(x) == divisible(n))


def bound(dtype: torch.dtype) -> float:
    """How far an answer may be off, ||off|| / ||truth||.

    Half types lose what rounding the answer and the weights once does; float32 adds a sum.
    """
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps


def bounds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """What a check allows: for the whole answer, and for each part of it.

    In a part chance evens out less, which float32 has room for. Half types have none: one tile that
    is 1 % too large has to show, and eps of bfloat16 is 0.8 %.
    """
    if dtype == torch.float32:
        if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
            # PyTorch's product in front of GEGLU then keeps ten bits
            return 2**-10, 2**-10
        return bound(dtype), 10 * bound(dtype)
    # the interpreter cuts bfloat16 off where others round
    cuts = device.type == "cpu" and dtype == torch.bfloat16
    return ((2 if cuts else 1) * bound(dtype),) * 2


@dataclass(frozen=True)
class Measured:
    """What a small call came to; errors are relative, and NaN where there is no answer."""

    error: float
    """||off|| / ||truth||."""
    part: float
    """The same of the worst part, as large as `Small.part` says."""
    bounds: tuple[float, float]
    """What is allowed of both."""
    seconds: float
    """What the check took, compiling included."""
    failure: str | None = None
    """What was raised in place of an answer, or is wrong with its kind."""

    @property
    def wrong(self) -> str | None:
        """What is wrong, or None."""
        if self.failure is not None:
            return self.failure
        # whatever NaN is compared with, the answer is no
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
    """`run` on the small call against `reference` on the same numbers in float64."""
    start, nothing = time.perf_counter(), float("nan")
    args, options = small.draw(device, dtype)
    truth = _tensors(reference(*map(_wide, args), **{k: _wide(v) for k, v in options.items()}))
    # what an allocator hands out next is most likely this, so that nothing unwritten looks right
    poison = [torch.full_like(x, nothing, dtype=dtype) for x in truth]
    del poison
    try:
        with torch.autocast(device.type, enabled=False):
            ours = _tensors(run(*args, **options))
        failure = _other_kind(ours, truth, dtype)
        errors = [] if failure else [_errors(*x, small.part) for x in zip(ours, truth, strict=True)]
    except torch.OutOfMemoryError:
        # that says nothing about the kernel
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        failure, errors = f"{type(error).__name__}: {words[:300]}", []
    # max() would pass NaN over
    error, part = torch.tensor(errors or [(nothing, nothing)]).amax(0).tolist()
    return Measured(error, part, allowed, time.perf_counter() - start, failure)


def objection(
    op: str,
    implementation: Implementation,
    reference: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> str | None:
    """Why a call must not go to an implementation that could take it, or None.

    Warns, once, of one that fails its check, or raises `Untrusted` if $ANYV2V_CHECK says so. No
    check runs while a compiler traces or where tensors have no data, for nothing is launched there,
    and none in a capture: a kernel whose code was not met before it is not trusted in it.
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
"""Calls, and small calls: what is wrong, or None. Only what is right or wrong is here."""
_lock = threading.Lock()


def _shrunk(
    implementation: Implementation, args: tuple[Any, ...], options: dict[str, Any]
) -> Small | str:
    """The small call, or what is in the way of it: it imports what the launch would."""
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
    """The relative error of all, and of the worst part; a quiet part counts as a quarter loud."""
    off = ours.double() - truth
    quiet = truth.square().mean().sqrt() / 4 * math.prod(part) ** 0.5
    worst = _parts(off, part).norm(dim=-1) / _parts(truth, part).norm(dim=-1).clamp_min(quiet)
    error, worst = torch.stack([off.norm() / truth.norm(), worst.max()]).tolist()
    return error, worst


def _parts(x: Tensor, part: tuple[int, ...]) -> Tensor:
    """The last dims cut into parts, the ragged ones filled up with zeros -> (..., elements)."""
    ragged = [-n % size for n, size in zip(reversed(x.shape), reversed(part), strict=False)]
    x = F.pad(x, [amount for n in ragged for amount in (0, n)])
    for dim, size in enumerate(part, x.ndim - len(part)):
        x = x.unfold(dim, size, size)
    return x.flatten(-len(part))
