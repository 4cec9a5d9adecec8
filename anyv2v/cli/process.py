"""The process around a command: its signals and its standard streams.

This module imports nothing that takes long, so that both can be in place before PyTorch is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that end a run; not every platform has all of them."""
AGAIN = 1.0
"""For so many seconds after a signal another one changes nothing: the run is ending already."""


class Signals:
    """A context in which a signal that ends the run raises KeyboardInterrupt, so that it cleans up.

    The signals are `ENDINGS`. A second signal within `AGAIN` seconds, as when Ctrl-C is pressed
    twice, does not disturb the cleanup. A signal that the caller ignores stays ignored, as with
    `nohup` and in background jobs of scripts. On leaving, the earlier handlers are restored.
    """

    def __init__(self, last: bool = False):
        """last: on leaving, ignore the signals, since nothing but the end of Python follows."""
        self.received: int | None = None
        """Number of the first signal that was received, or None."""
        self._last, self._raised = last, -AGAIN
        self._outer: Signals | None = None
        self._before: dict[int, Handler] = {}

    @property
    def status(self) -> int:
        """The exit status of an interrupted run: 128 + the number of the signal that ended it.

        Without a signal it is that of SIGINT (Ctrl-C).
        """
        return 128 + (self.received or signal.SIGINT)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come: one raised in a callback may be lost."""
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Signals:
        # Python sets handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            for name in ENDINGS:
                number = getattr(signal, name, None)
                # None: a handler that is not Python's, which could not be put back
                if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue
                before = self._before[number] = signal.signal(number, self._interrupt)
                outer = getattr(before, "__self__", None)
                self._outer = outer if isinstance(outer, Signals) else self._outer
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)

    def _interrupt(self, number: int, _) -> None:
        now = time.monotonic()
        again = now - self._raised < AGAIN
        self._note(number, self._raised if again else now)
        if not again:
            raise KeyboardInterrupt

    def _note(self, number: int, raised: float) -> None:
        self.received, self._raised = self.received or number, raised
        if self._outer is not None:
            self._outer._note(number, raised)


class Unfailing:
    """A text stream whose methods never raise because of the output: a run outlives its messages.

    Characters that the encoding lacks are escaped. If a pipe is closed or a disk is full, the
    output ends and the run goes on. stream: the stream to write to; None discards all text.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        """The error that ended the output, or None."""
        self.needed = False
        """Whether the command shall fail if what it prints is lost."""

    def write(self, text: str) -> int:
        """Writes a text, if the stream can still be written to; returns the length of the text."""
        with self._failing() as stream:
            try:
                stream.write(text)
            except UnicodeError:
                encoding = stream.encoding
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it can still be written to."""
        with self._failing() as stream:
            stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal that can still be written to."""
        return self._stream is not None and not self.failure and self._stream.isatty()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[TextIO]:
        if self._stream is None or self.failure is not None:
            # Python has no stream where the descriptor is closed; nothing can be written
            with open(os.devnull, "w", encoding="utf-8") as void:
                yield void
            return
        try:
            yield self._stream
        except (OSError, ValueError) as error:
            self.failure = error
            # what is still buffered would fail once more when Python ends
            with contextlib.suppress(OSError, ValueError):
                void = os.open(os.devnull, os.O_WRONLY)
                os.dup2(void, self._stream.fileno())
                os.close(void)


@contextlib.contextmanager
def unfailing_streams() -> Iterator[Unfailing]:
    """Makes stdout and stderr `Unfailing` inside the block; yields the new stdout."""
    _occupy_standard_descriptors()
    out, err = Unfailing(sys.stdout), Unfailing(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()


def _occupy_standard_descriptors() -> None:
    """Opens descriptors 0 to 2 where they are closed.

    Otherwise the next file that is opened would get what libraries write to stdout and stderr.
    """
    while (void := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(void)
