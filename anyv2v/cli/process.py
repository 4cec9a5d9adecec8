"""The process around a command: its signals and its standard streams.

Imports nothing that takes long, so that both are in place before PyTorch is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that end a run; a platform may lack some."""
AGAIN = 1.0
"""Seconds in which a second signal changes nothing: the first is being obeyed."""


class Signals:
    """Inside, a signal that ends the run raises KeyboardInterrupt, so that the run cleans up.

    One that follows within `AGAIN` seconds, as of Ctrl-C pressed twice, does not disturb that. A
    signal that the caller ignores stays ignored: `nohup`, and background jobs of scripts. On
    leaving, the handlers from before are back.
    """

    def __init__(self, last: bool = False):
        """`last`: only the end of Python follows, which no signal disturbs any more."""
        self.received: int | None = None
        self._last, self._raised, self._outer = last, -AGAIN, None
        self._before: dict[int, object] = {}

    @property
    def status(self) -> int:
        """The exit status of a run that was interrupted: 128 + the signal's number."""
        return 128 + (self.received or signal.SIGINT)

    def check(self) -> None:
        """KeyboardInterrupt after a signal: one raised in a library's callback may be lost."""
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
    """A text stream that never fails its writer, who has more important things to do than to talk.

    What the encoding lacks is escaped. A closed pipe or a full disk ends the output, not the run;
    `failure` is what ended it.
    """

    def __init__(self, stream: TextIO | None):
        self._stream, self.failure = stream, None
        self.needed = False
        """Whether a command fails if what it prints is lost."""

    def write(self, text: str) -> int:
        with self._failing():
            try:
                self._stream.write(text)
            except UnicodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self.failure and self._stream.isatty()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        if self._stream is None or self.failure is not None:
            # Python has no stream where the descriptor is closed; nothing can be written
            with contextlib.suppress(AttributeError, OSError, ValueError):
                yield
            return
        try:
            yield
        except (OSError, ValueError) as error:
            self.failure = error
            # what is still buffered would fail once more when Python ends
            with contextlib.suppress(OSError, ValueError):
                void = os.open(os.devnull, os.O_WRONLY)
                os.dup2(void, self._stream.fileno())
                os.close(void)


@contextlib.contextmanager
def unfailing_streams() -> Iterator[Unfailing]:
    """Inside, stdout and stderr are `Unfailing`; gives the former."""
    _occupy_standard_descriptors()
    out, err = Unfailing(sys.stdout), Unfailing(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()


def _occupy_standard_descriptors() -> None:
    """A file opened where stdout or stderr is closed would get what libraries write there."""
    while (void := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(void)
