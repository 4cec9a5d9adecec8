"""The rule by which every operation picks its implementation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyv2v.kernels import trust

log = logging.getLogger(__name__)

USED: dict[str, set[str]] = {}
"""Name of an operation -> names of the implementations that this process chose for it. Calls on
meta tensors, which have no data, are not counted."""


class Unsupported(RuntimeError):
    """Raised if an implementation requested by name does not exist or cannot run the call."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of an operation, with the rules for choosing it.

    Its functions all take the arguments of the operation.
    """

    name: str
    """The name by which it can be requested, such as "triton"; unique in the operation's table."""
    run: Callable[..., Tensor]
    """Runs the operation and returns its result."""
    refuses: Callable[..., str | None]
    """Returns the reason why the implementation cannot run a call, or None if it can."""
    avoids: Callable[..., str | None] = lambda *_, **__: None
    """Returns a reason not to choose the implementation automatically for a call that it could run,
    or None if there is none."""
    small: Callable[..., trust.Small] | None = None
    """Returns a small call of the same compiled code, on which the implementation is checked before
    its first launch. None: the implementation needs no check."""

    def declines(self, *args: Any, **options: Any) -> str | None:
        """Returns the reason why automatic choice passes over it for this call, or None."""
        return self.refuses(*args, **options) or self.avoids(*args, **options)


class Call(NamedTuple):
    """A call of an operation."""

    op: str
    """Name of the operation."""
    table: tuple[Implementation, ...]
    """Its implementations, the best first."""
    args: tuple[Any, ...]
    """The positional arguments of the call."""
    options: dict[str, Any]
    """The keyword arguments of the call."""


_observers: list[list[Call]] = []
"""Lists to which each call is added."""


@contextmanager
def observed() -> Iterator[list[Call]]:
    """Yields a list to which each call of an operation in this process is added inside the block.

    The calls keep their tensors, so the block had better run on tensors without data.
    """
    calls: list[Call] = []
    _observers.append(calls)
    try:
        yield calls
    finally:
        # by identity: lists of equal calls are equal
        _observers[:] = [each for each in _observers if each is not calls]


def choose(
    op: str, table: tuple[Implementation, ...], requested: str | None, *args: Any, **options: Any
) -> Implementation:
    """Chooses the implementation in `table` that runs a call, and records its name in `USED`.

    op: name of the operation. table: its implementations, the best first and the definition last.
    requested: the name of an implementation, or several separated by commas, of which the first
    that can run the call is chosen; None chooses automatically. args, options: the arguments of the
    call. An implementation that fails its check (trust.py) counts as unable to run it. For meta
    tensors, which have no data, the choice is always automatic. Raises `Unsupported` if none of the
    requested implementations can run the call.
    """
    for calls in _observers:
        calls.append(Call(op, table, args, options))
    chosen = _choose(op, table, requested, *args, **options)
    if not any(isinstance(x, Tensor) and x.is_meta for x in args):
        used = USED.setdefault(op, set())
        if chosen.name not in used and not torch.compiler.is_compiling():
            _tell(op, table, requested, chosen, args, options)
        used.add(chosen.name)
    return chosen


def _tell(
    op: str,
    table: tuple[Implementation, ...],
    requested: str | None,
    chosen: Implementation,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Logs which implementation runs an operation, and why none of those before it in `table`."""
    if not log.isEnabledFor(logging.INFO):
        return
    if requested is not None:
        log.info("kernels: %s is run by %s, which was asked for", op, chosen.name)
        return
    before = table[: table.index(chosen)]
    # of one that does not decline, the check has failed, and a warning has said so
    reasons = [f"{x.name}: {x.declines(*args, **options) or 'failed its check'}" for x in before]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    log.info("kernels: %s is run by %s%s", op, chosen.name, why)


def _choose(
    op: str, table: tuple[Implementation, ...], requested: str | None, *args: Any, **options: Any
) -> Implementation:
    """Chooses the first of `table` that does not decline, or the first requested one that can run.

    An implementation that fails its check against the last of `table`, the definition, counts as
    refusing (trust.py). For tensors without data the choice is always automatic, since counting
    operations and finding shapes needs no kernel.
    """
    if requested is None or any(isinstance(x, Tensor) and x.is_meta for x in args):
        return next(
            i
            for i in table
            if i.declines(*args, **options) is None
            and trust.objection(op, i, table[-1].run, args, options) is None
        )
    named, reasons = {i.name: i for i in table}, []
    for name in requested.split(","):
        if name not in named:
            names = ", ".join(named)
            raise Unsupported(f"{op}: there is no implementation {name!r}; there are: {names}")
        reason = named[name].refuses(*args, **options) or trust.objection(
            op, named[name], table[-1].run, args, options
        )
        if reason is None:
            return named[name]
        reasons.append(f"{name} cannot run this call: {reason}")
    raise Unsupported(f"{op}: {'; '.join(reasons)}")
