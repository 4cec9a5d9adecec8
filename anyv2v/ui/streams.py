"""What a command prints, heard by the thread that runs it, while others print elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TextIO

_HEARD: ContextVar[io.StringIO | None] = ContextVar("heard", default=None)
_UNHEARD: ContextVar[io.StringIO | None] = ContextVar("unheard", default=None)


class _Divided:
    """A text stream that writes to the text of the context if there is one, else to a stream."""

    def __init__(self, stream: TextIO, text: ContextVar[io.StringIO | None]):
        self._stream, self._text = stream, text

    def write(self, text: str) -> int:
        return (self._text.get() or self._stream).write(text)

    def flush(self) -> None:
        (self._text.get() or self._stream).flush()

    def isatty(self) -> bool:
        return self._text.get() is None and self._stream.isatty()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def divided_streams() -> Iterator[None]:
    """Makes stdout and stderr streams that `heard` can listen to, for all threads."""
    out, err = _Divided(sys.stdout, _UNHEARD), _Divided(sys.stderr, _HEARD)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # pyright: ignore[reportArgumentType]
        yield


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Yields a list, which has the lines of this thread on stderr when the block has ended.

    It works within `divided_streams`. What the block prints to stdout is dropped.
    """
    lines: list[str] = []
    text = io.StringIO()
    tokens = _HEARD.set(text), _UNHEARD.set(io.StringIO())
    try:
        yield lines
    finally:
        _HEARD.reset(tokens[0])
        _UNHEARD.reset(tokens[1])
        lines += [line.removeprefix("anyv2v: ") for line in text.getvalue().splitlines()]
