"""A check by which whoever started long work ends it, heard where no argument is passed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CHECK: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Lets `check_interrupt` call `check` inside the block, in this thread.

    check: returns at once, or raises to end the work.
    """
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_interrupt() -> None:
    """Raises what the check of the innermost `interruptible` raises; without one does nothing."""
    check = _CHECK.get()
    if check is not None:
        check()
