"""The rule by which every operation picks its implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyv2v.kernels import trust

USED: dict[str, set[str]] = {}
"""Operation -> names of the implementations that this process chose for tensors with data."""


class Unsupported(RuntimeError):
    """Raised if an implementation that was asked for by name cannot take the call."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of an operation, with the rules of when to choose it.

    All its functions take the same arguments.
    """

    name: str
    run: Callable[..., Tensor]
    """Runs the operation."""
    refuses: Callable[..., str | None]
    """Returns the reason why it cannot run the call, or None."""
    avoids: Callable[..., str | None] = lambda *_, **__: None
    """Returns the reason not to pick it automatically although it would work, or None."""
    small: Callable[..., trust.Small] | None = None
    """Returns a small call of the same compiled code, by which it is checked before it first runs;
    None if it needs no check."""

    def declines(self, *args: Any, **options: Any) -> str | None:
        """Returns the reason why automatic choice passes it over, or None."""
        return self.refuses(*args, **options) or self.avoids(*args, **options)


def choose(
    op: str, table: tuple[Implementation, ...], requested: str | None, *args: Any, **options: Any
) -> Implementation:
    """Chooses the implementation of `table` that runs a call, and notes it in `USED`.

    requested: the name of an implementation, or several separated by commas, of which the first
    that can take the call is chosen; None chooses automatically. Raises `Unsupported` if none of
    those requested can.
    """
    chosen = _choose(op, table, requested, *args, **options)
    if not any(isinstance(x, Tensor) and x.is_meta for x in args):
        USED.setdefault(op, set()).add(chosen.name)
    return chosen


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
