"""Checks for infinite values and NaN that find them early and do not wait for a GPU.

Values beyond float16's largest (65504) become infinite, further computation turns them into NaN,
and NaN clamped to a pixel is black.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from anyv2v.errors import NotFiniteError

FLAGS_PER_BUFFER = 4096
"""Flags per buffer of pinned host memory. A buffer serves many checks, because allocating one may
make the GPU wait."""
HIGHEST_GUIDANCE = 1000.0
"""A guidance scale above this is named as the cause of values that are not finite; about 9 is
usual."""

DescribePlace = Callable[[Any, list[int]], str]
"""(place of the computation, indices of the batch whose values are not finite) -> error message.
The place is what the caller of `FiniteCheck.look` passed."""
DescribeEdits = Callable[[list[int]], str]
"""Indices of the batch -> the end of an error message, which names their edits; "" for a single
edit."""


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used: a marker in the work queued on a device."""

    def query(self) -> bool:
        """Whether the device has done all work that was queued before the marker."""
        ...

    def synchronize(self) -> None:
        """Waits until the device has done all work that was queued before the marker."""
        ...


def describe_step(place: tuple[int, float], indices: list[int]) -> str:
    """Returns an error message that names a step and no more; it is the default of `FiniteCheck`.

    place: (index of the step, counted as by `on_step`; timestep). `indices` are ignored.
    """
    return not_finite_message("the network", f"in step {place[0]} (timestep {place[1]})")


def describe_steps(
    what: str,
    steps: int,
    dtype: torch.dtype,
    guidance: Sequence[float] = (0.0,),
    which: DescribeEdits = lambda indices: "",
) -> DescribePlace:
    """Returns a function that makes error messages for the steps of a run, with advice to the user.

    The function's `place` is that of `describe_step`. what: the network, as messages shall name it.
    steps: number of steps of the run. dtype: the dtype that the network computes in. guidance: the
    guidance scale of each index of the batch. which: names the edits at given indices in the
    message.
    """

    def describe(place: tuple[int, float], indices: list[int]) -> str:
        i, t = place
        where = f"in step {ordinal(i, steps, f'timestep {t:g}')}{which(indices)}"
        strongest = max((guidance[index] for index in indices), key=abs)
        return not_finite_message(what, where, remedy(dtype, strongest))

    return describe


class FiniteCheck:
    """Raises NotFiniteError if values that a run computes on one device and stream are not finite.

    On a CPU values are checked at once. On a GPU one flag for each index of the batch is copied to
    the host, and read in a later call, once it has arrived: only `finish` waits for the GPU.
    """

    def __init__(
        self,
        describe: DescribePlace = describe_step,
        record: Callable[[torch.device], Event] | None = None,
    ):
        """describe: makes the error message. record: puts a marker into the work of a device.

        By default the message names the step alone, and markers are CUDA events. Without markers,
        as for CPU tensors by default, values are checked at once.
        """
        self._describe, self._record = describe, record
        self._pending: deque[tuple[Any, Tensor, Event]] = deque()
        self._buffer: Tensor | None = None

    def look(self, x: Tensor, place: Any) -> None:
        """Checks x (batch, ...), a tensor of floats; `place` tells `describe` where x was computed.

        Raises NotFiniteError if x, or the x of an earlier call, has infinite values or NaN. On a
        GPU the error may come in a later call.
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
        """Waits for flags that have not arrived yet, and raises NotFiniteError as `look` does."""
        if self._pending:
            self._pending[-1][2].synchronize()
        while self._pending:
            self._judge(*self._pending.popleft()[:2])

    def error(self, place: Any, indices: list[int]) -> NotFiniteError:
        """Returns the error for values at `indices` of the batch that were computed at `place`."""
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
    """Returns for each index of the batch whether all its values are finite.

    x (batch, ...) of floats -> bool (batch,), on the device of x. A batch of one is never copied.
    """
    x = x.detach()
    low, high = x.aminmax() if len(x) == 1 else x.reshape(len(x), -1).aminmax(dim=1)
    return (low.isfinite() & high.isfinite()).reshape(len(x))


def check_finite(x: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """Returns x (batch, ...) if all its values are finite, else raises NotFiniteError.

    Waits until the device has computed x. what: the network that computed x, as the message shall
    name it. dtype: the dtype that the network computes in.
    """
    check = FiniteCheck(lambda place, indices: not_finite_message(what, "", remedy(dtype)))
    check.look(x, None)
    check.finish()
    return x


def not_finite_message(what: str, where: str, then: str = "") -> str:
    """Returns the message "{what} gave values that are not finite {where}: {then}".

    what: the network that computed the values. where: the step or frame, such as "in step 3"; ""
    leaves it out. then: advice to the user; "" leaves it out.
    """
    text = " ".join(filter(None, (what, "gave values that are not finite", where)))
    return f"{text}: {then}" if then else text


def ordinal(i: int, count: int, *details: str) -> str:
    """Returns an index with its ordinal, such as "0 (number 1 of 50, timestep 981)".

    i: the index, from 0. count: how many there are. details: texts that follow in the parentheses.
    """
    return f"{i} ({', '.join([f'number {i + 1} of {count}', *details])})"


def remedy(dtype: torch.dtype, guidance: float = 0.0) -> str:
    """Returns advice to the user for a network that computed values that are not finite.

    dtype: the dtype that the network computes in. guidance: the scale of classifier-free guidance;
    0 for a network without guidance.
    """
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
