"""Values that are not finite: found in the step in which they appear, without waiting for a GPU.

What float16 cannot hold (65504) becomes infinite, what is computed of that becomes NaN, and NaN
clamped to pixels is black.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from anyv2v.errors import NotFiniteError

ROOM = 4096
"""Flags that a piece of pinned memory has room for: asking for such memory may make a GPU wait."""
FAR = 1000.0
"""A guidance that no network stands; about 9 is usual."""

Tell = Callable[[Any, list[int]], str]
"""(place, rows that are not finite) -> message."""
Which = Callable[[list[int]], str]
"""Rows of a batch -> which edits they are, as a message goes on; empty where there is but one."""


class Event(Protocol):
    """What is reached when the flags before it have arrived (`torch.cuda.Event`)."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


def in_step(place: tuple[int, float], rows: list[int]) -> str:
    """The plainest message; place: index of the step as `on_step` gets it, timestep."""
    return not_finite("the network", f"in step {place[0]} (timestep {place[1]})")


def in_steps(
    what: str,
    steps: int,
    dtype: torch.dtype,
    guidance: Sequence[float] = (0.0,),
    which: Which = lambda rows: "",
) -> Tell:
    """Messages on the steps of a run, places as for `in_step`. `guidance`: that of each row."""

    def tell(place: tuple[int, float], rows: list[int]) -> str:
        i, t = place
        where = f"in step {nth(i, steps, f'timestep {t:g}')}{which(rows)}"
        strongest = max((guidance[row] for row in rows), key=abs)
        return not_finite(what, where, remedy(dtype, strongest))

    return tell


class FiniteCheck:
    """Looks at what one run computes, on one device and stream.

    On a CPU at once. On a GPU a flag for each row is copied to the host, and looked at in a later
    call that finds it there: the GPU is never waited for but in `finish`.
    """

    def __init__(self, tell: Tell = in_step, record: Callable[[torch.device], Event] | None = None):
        """`record`: what marks a place in the work of a device; left out, CUDA's events on CUDA."""
        self._tell, self._record = tell, record
        self._pending: deque[tuple[Any, Tensor, Event]] = deque()
        self._room: Tensor | None = None

    def look(self, x: Tensor, place: Any) -> None:
        """x (rows, ...), floats. NotFiniteError if it, or x of an earlier call, is not finite."""
        flags = finite_rows(x)
        record = self._record or (_record if x.is_cuda else None)
        if record is None:
            self._judge(place, flags)
            return
        there = self._place_for(flags)
        there.copy_(flags, non_blocking=True)
        self._pending.append((place, there, record(x.device)))
        while self._pending and self._pending[0][2].query():
            self._judge(*self._pending.popleft()[:2])

    def finish(self) -> None:
        """Waits for the flags that are still on their way; NotFiniteError as in `look`."""
        if self._pending:
            self._pending[-1][2].synchronize()
        while self._pending:
            self._judge(*self._pending.popleft()[:2])

    def error(self, place: Any, rows: list[int]) -> NotFiniteError:
        return NotFiniteError(self._tell(place, rows), rows)

    def _judge(self, place: Any, flags: Tensor) -> None:
        # numpy reads memory of the host, where a tensor's own methods count as synchronisations
        rows = [row for row, finite in enumerate(flags.numpy()) if not finite]
        if rows:
            raise self.error(place, rows)

    def _place_for(self, flags: Tensor) -> Tensor:
        if self._room is None or len(self._room) < len(flags):
            size = max(ROOM, len(flags))
            self._room = torch.empty(size, dtype=torch.bool, pin_memory=flags.is_cuda)
        there, self._room = self._room[: len(flags)], self._room[len(flags) :]
        return there


def finite_rows(x: Tensor) -> Tensor:
    """x (rows, ...) -> bool (rows,), on its device. Makes no copy of an x of one row."""
    x = x.detach()
    low, high = x.aminmax() if len(x) == 1 else x.reshape(len(x), -1).aminmax(dim=1)
    return (low.isfinite() & high.isfinite()).reshape(len(x))


def checked(x: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """x, or NotFiniteError; waits for the device."""
    check = FiniteCheck(lambda place, rows: not_finite(what, "", remedy(dtype)))
    check.look(x, None)
    check.finish()
    return x


def not_finite(what: str, where: str, then: str = "") -> str:
    """A message: what gave the values, where, and what to do."""
    text = " ".join(filter(None, (what, "gave values that are not finite", where)))
    return f"{text}: {then}" if then else text


def nth(i: int, count: int, *besides: str) -> str:
    """An index, from 0 as in Python, and the number that people count by; `besides` follows."""
    return f"{i} ({', '.join([f'number {i + 1} of {count}', *besides])})"


def remedy(dtype: torch.dtype, guidance: float = 0.0) -> str:
    """What to do about it, for a network that computes in `dtype`."""
    if abs(guidance) > FAR:
        return f"a guidance of {guidance:g} is too large, about 9 is usual"
    if dtype == torch.float16:
        return "--dtype bfloat16 (dtype=torch.bfloat16) or float32 has the range that float16 lacks"
    name = str(dtype).removeprefix("torch.")
    instead = "float32" if dtype == torch.bfloat16 else "bfloat16"
    return (
        f"--dtype {instead} has no more range than {name}, so the weights are broken or do not "
        "belong together: `anyv2v weights verify` reads them through"
    )


def _record(device: torch.device) -> Event:
    return torch.cuda.current_stream(device).record_event()
