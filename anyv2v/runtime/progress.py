"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from tqdm import tqdm

from anyv2v import checks

EVERY = 30.0
"""Seconds since the last plain line after which the next step prints another."""
SHARE = 0.1
"""Fraction of the work after which another plain line is printed, however little time has
passed."""
BRIEF = 5.0
"""Reading or writing a file prints no plain line in its first so many seconds."""


class Progress:
    """A context manager that shows the progress of each stage of the work on stderr.

    progress(title, steps) begins a stage and returns a function to be called after each step, for
    instance as `on_step`:

        with Progress() as progress:
            editor.edit(..., steps=50, on_step=progress("edit", 50))

    On a terminal each stage is a bar with steps and remaining time. Elsewhere it is a plain line
    every tenth of the work, or every 30 seconds if that comes first.
    """

    def __init__(self, quiet: bool = False, check: Callable[[], None] | None = None):
        """quiet: show nothing. check: called at each step, and may raise to end the run."""
        self._quiet, self._check = checks.flag("quiet", quiet), checks.called("check", check)
        self._stages = ExitStack()

    def __call__(self, title: str, steps: int) -> Callable[..., None]:
        """Begins a stage of `steps` steps; returns a function to be called after each of them.

        The function ignores its arguments, so that it can serve as `on_step`. title: shown with the
        progress.
        """
        stage = self._stage(checks.text("title", title), checks.whole("steps", steps, 0), "step")

        def step(*_) -> None:
            if self._check is not None:
                self._check()
            stage.update(1)

        return step

    def bytes(self, title: str) -> Callable[[int, int], None]:
        """Begins a stage of bytes; returns a function of (bytes done so far, bytes in total)."""
        stage, previous = self._stage(title, 0, "B"), 0

        def progress(done: int, total: int) -> None:
            nonlocal previous
            stage.total = total
            stage.update(done - previous)
            previous = done

        return progress

    def _stage(self, title: str, total: int, unit: str) -> tqdm | Lines:
        if not self._quiet and not sys.stderr.isatty():
            return Lines(title, total, unit)
        bar = tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", disable=self._quiet)
        return self._stages.enter_context(bar)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self._stages.close()


class Lines:
    """Progress as plain lines on stderr, at every `SHARE` of the work or every `EVERY` seconds.

    It has the part of tqdm's interface that `Progress` uses. title: begins each line. total: the
    amount of the work, which may be set later. unit: "step", or "B" for bytes.
    """

    def __init__(self, title: str, total: int, unit: str):
        self._title, self.total, self._unit = title, total, unit
        self._began = self._printed_at = time.monotonic()
        self._done = self._printed = 0

    def update(self, more: int) -> None:
        """Adds `more` steps or bytes to those that are done, and prints a line if one is due."""
        self._done += more
        now = time.monotonic()
        tenths = [int(n / max(self.total, 1) / SHARE + 1e-9) for n in (self._printed, self._done)]
        if tenths[0] == tenths[1] and now - self._printed_at < EVERY:
            return
        if self._unit == "B" and now - self._began < BRIEF:
            return
        self._printed, self._printed_at = self._done, now
        print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        share = self._done / max(self.total, 1)
        if self._unit == "B":
            count = f"{self._done / 1e9:.2f} of {self.total / 1e9:.2f} GB"
        else:
            count = f"{self._done} of {self.total} {self._unit}s"
        left = tqdm.format_interval(seconds / share - seconds) if share else "?"
        return f"{self._title}: {count} ({share:.0%}), {tqdm.format_interval(seconds)} < {left}"
