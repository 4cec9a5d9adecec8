"""The progress of a run as the page shows it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from anyv2v.runtime.progress import Progress

Show = Callable[[str, int, int, str], None]
"""Shows progress: title of the stage, steps that are done, steps in all, and the time left, such
as "00:12", "" if it is not known yet."""


class ShownProgress(Progress):
    """A `Progress` that tells each step to a function, in place of a terminal."""

    def __init__(self, show: Show, check: Callable[[], None]):
        """show: see `Show`. check: called at each step, and may raise to end the run."""
        super().__init__(check=check)
        self._show = show

    def _stage(self, title: str, total: int, unit: str):
        return _Stage(self._show, title, total)


class _Stage:
    """One stage; it has the part of tqdm's interface that `Progress` uses."""

    def __init__(self, show: Show, title: str, total: int):
        self._show, self._title, self.total = show, title, total
        self._began, self._done = time.monotonic(), 0
        show(title, 0, total, "")

    def update(self, more: int) -> None:
        self._done += more
        seconds = (time.monotonic() - self._began) / max(self._done, 1)
        left = tqdm.format_interval(seconds * (self.total - self._done))
        self._show(self._title, self._done, self.total, left)
