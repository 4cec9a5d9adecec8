"""Checks for values that are not finite: early, and without waiting for a GPU.

Values beyond float16's largest (65504) become infinite, further computation makes NaN of them, and
NaN clamped to a pixel is black.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from anyv2v.errors import NotFiniteError

FLAGS_PER_BUFFER = 4096
"""Flags that fit into one buffer of pinned memory, whose allocation may make a GPU wait."""
HIGHEST_GUIDANCE = 1000.0
"""Guidance beyond it is blamed for values that are not finite; about 9 is usual."""

DescribePlace = Callable[[Any, list[int]], str]
"""(place, indices into the batch that are not finite) -> error message."""
DescribeEdits = Callable[[list[int]], str]
"""Indices into a batch -> the end of a message that names their edits; "" for a single edit."""


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used: a marker in the work of a device."""

    def query(self) -> bool:
        """Whether the work before the marker is done."""
        ...

    def synchronize(self) -> None:
        """Waits for the work before the marker."""
        ...


def describe_step(place: tuple[int, float], indices: list[int]) -> str:
    """The plainest message; place: (index of the step as `on_step` gets it, timestep)."""
    return not_finite_message("the network", f"in step {place[0]} (timestep {place[1]})")


def describe_steps(
    what: str,
    steps: int,
    dtype: torch.dtype,
    guidance: Sequence[float] = (0.0,),
    which: DescribeEdits = lambda indices: "",
) -> DescribePlace:
    """A function that describes steps of a run; places are those of `describe_step`.

    what: the network, as the message names it. dtype: that of the network. guidance: the scale for
    each index of the batch. which: names the edits that are concerned.
    """

    def describe(place: tuple[int, float], indices: list[int]) -> str:
        i, t = place
        where = f"in step {ordinal(i, steps, f'timestep {t:g}')}{which(indices)}"
        strongest = max((guidance[index] for index in indices), key=abs)
        return not_finite_message(what, where, remedy(dtype, strongest))

    return describe


class FiniteCheck:
    """Checks the values that one run computes, on one device and stream.

    On a CPU values are checked at once. On a GPU one flag for each index of the batch is copied to
    the host, and read in a later call, once it has arrived: only `finish` waits for the GPU.
    """

    def __init__(
        self,
        describe: DescribePlace = describe_step,
        record: Callable[[torch.device], Event] | None = None,
    ):
        """`record` puts a marker into the work of a device; None records CUDA events on CUDA."""
        self._describe, self._record = describe, record
        self._pending: deque[tuple[Any, Tensor, Event]] = deque()
        self._buffer: Tensor | None = None

    def look(self, x: Tensor, place: Any) -> None:
        """Checks x (batch, ...) of floats; `place` says where it was computed.

        NotFiniteError: x, or the x of an earlier call, has infinities or NaN.
        """
        flags = finite_flags(x)
        record = self._record or (_record_event if x.is_cuda else None)
        if record is None:
            self._judge(place, flags)
            return
        on_host = self._space_for(flags)
        on_host.copy_(flags, non_blocking=True)
        self._pending.append((place, on_host, record(x.device)))
        while self._pending and self._pending[0][2].query():
            self._judge(*self._pending.popleft()[:2])

    def finish(self) -> None:
        """Waits for the flags that have not arrived yet; raises NotFiniteError as `look` does."""
        if self._pending:
            self._pending[-1][2].synchronize()
        while self._pending:
            self._judge(*self._pending.popleft()[:2])

    def error(self, place: Any, indices: list[int]) -> NotFiniteError:
        """The error for values at `indices` of the batch, computed at `place`."""
        return NotFiniteError(self._describe(place, indices), indices)

    def _judge(self, place: Any, flags: Tensor) -> None:
        # read through numpy: a method of a pinned tensor would count as a synchronization
        indices = [index for index, finite in enumerate(flags.numpy()) if not finite]
        if indices:
            raise self.error(place, indices)

    def _space_for(self, flags: Tensor) -> Tensor:
        """Unused host memory for the flags, pinned if they are on a GPU."""
        if self._buffer is None or len(self._buffer) < len(flags):
            size = max(FLAGS_PER_BUFFER, len(flags))
            self._buffer = torch.empty(size, dtype=torch.bool, pin_memory=flags.is_cuda)
        space, self._buffer = self._buffer[: len(flags)], self._buffer[len(flags) :]
        return space


def finite_flags(x: Tensor) -> Tensor:
    """Bool (batch,), on the device of x (batch, ...): whether all values of an index are finite.

    A batch of one is not copied.
    """
    x = x.detach()
    low, high = x.aminmax() if len(x) == 1 else x.reshape(len(x), -1).aminmax(dim=1)
    return (low.isfinite() & high.isfinite()).reshape(len(x))


def check_finite(x: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """Returns x, once the device has computed it, or raises NotFiniteError.

    what: the network that computed x, as the message names it. dtype: that of the network.
    """
    check = FiniteCheck(lambda place, indices: not_finite_message(what, "", remedy(dtype)))
    check.look(x, None)
    check.finish()
    return x


def not_finite_message(what: str, where: str, then: str = "") -> str:
    """An error message: which network gave the values, where, and (`then`) what to do."""
    text = " ".join(filter(None, (what, "gave values that are not finite", where)))
    return f"{text}: {then}" if then else text


def ordinal(i: int, count: int, *details: str) -> str:
    """An index from 0 with its ordinal from 1 and `details`, as "0 (number 1 of 50, ...)"."""
    return f"{i} ({', '.join([f'number {i + 1} of {count}', *details])})"


def remedy(dtype: torch.dtype, guidance: float = 0.0) -> str:
    """What a user can do about it, for a network that computes in `dtype` with this guidance."""
    if abs(guidance) > HIGHEST_GUIDANCE:
        return f"a guidance of {guidance:g} is too large, about 9 is usual"
    if dtype == torch.float16:
        return "--dtype bfloat16 (dtype=torch.bfloat16) or float32 has the range that float16 lacks"
    name = str(dtype).removeprefix("torch.")
    instead = "float32" if dtype == torch.bfloat16 else "bfloat16"
    return (
        f"--dtype {instead} has no more range than {name}, so the weights are broken or do not "
        "belong together: `anyv2v weights verify` reads them through"
    )


def _record_event(device: torch.device) -> Event:
    return torch.cuda.current_stream(device).record_event()
