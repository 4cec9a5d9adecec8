"""The one rule by which an operation picks its implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyv2v.kernels import trust

USED: dict[str, set[str]] = {}
"""Operation -> the implementations that this process chose for tensors with data."""


class Unsupported(RuntimeError):
    """An implementation that was asked for by name cannot take this call."""


@dataclass(frozen=True)
class Implementation:
    name: str
    run: Callable[..., Tensor]
    refuses: Callable[..., str | None]
    """Takes what `run` takes; gives the reason why it cannot, or None."""
    yields: Callable[..., str | None] = lambda *_, **__: None
    """Likewise: why it could but had better not, so that only a caller who names it gets it."""
    small: Callable[..., trust.Small] | None = None
    """Likewise: a small call of the same code. What has it is checked before its first launch."""

    def declines(self, *args: Any, **options: Any) -> str | None:
        """Why automatic choice passes this implementation over, or None."""
        return self.refuses(*args, **options) or self.yields(*args, **options)


def choose(
    op: str, table: tuple[Implementation, ...], wanted: str | None, *args: Any, **options: Any
) -> Implementation:
    """The implementation of `table` that runs a call, noted in USED: see `_chosen`."""
    found = _chosen(op, table, wanted, *args, **options)
    if not any(isinstance(x, Tensor) and x.is_meta for x in args):
        USED.setdefault(op, set()).add(found.name)
    return found


def _chosen(
    op: str, table: tuple[Implementation, ...], wanted: str | None, *args: Any, **options: Any
) -> Implementation:
    """The first of `table` not to decline the call; what is asked for by name must not refuse.

    `wanted`: a name, or several with commas: the first of them that does not refuse. What fails its
    check against the last of `table`, the definition, counts as refusing (trust.py). On tensors
    without data the choice is automatic: what is only counted or shaped needs no kernel.
    """
    if wanted is None or any(isinstance(x, Tensor) and x.is_meta for x in args):
        return next(
            i
            for i in table
            if i.declines(*args, **options) is None
            and trust.objection(op, i, table[-1].run, args, options) is None
        )
    named, reasons = {i.name: i for i in table}, []
    for name in wanted.split(","):
        if name not in named:
            there = ", ".join(named)
            raise Unsupported(f"{op}: there is no implementation {name!r}; there are: {there}")
        reason = named[name].refuses(*args, **options) or trust.objection(
            op, named[name], table[-1].run, args, options
        )
        if reason is None:
            return named[name]
        reasons.append(f"{name} cannot run this call: {reason}")
    raise Unsupported(f"{op}: {'; '.join(reasons)}")
