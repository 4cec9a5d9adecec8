"""Messages to the person at the terminal, one line each, on stderr."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from anyv2v.errors import InputError


def say(message: object) -> None:
    """Prints "anyv2v: " and the message to stderr, in one line whatever line breaks it has."""
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)


def tell(lines: Iterable[str | None]) -> None:
    """Prints each of the lines to stderr as `say` does, and skips those that are None."""
    for line in lines:
        if line is not None:
            say(line)


LEVELS = (logging.INFO, logging.DEBUG)
"""The level of what is told with -v, and with -vv."""


@contextmanager
def verbose(times: int) -> Iterator[None]:
    """Shows on stderr what the package logs inside the block, one line each.

    times: how often -v was given; 0 leaves logging as it is, and then warnings alone are shown.
    """
    if not times:
        yield
        return
    log, handler = logging.getLogger("anyv2v"), _Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(LEVELS[min(times, len(LEVELS)) - 1])
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Lines(logging.Handler):
    """Prints each record as `say` does, and does not disturb a progress bar."""

    def __init__(self):
        super().__init__()
        # the stream of this moment: a batch collects what is said on stderr until an edit is made
        self._stream = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        # warnings begin with the name of the program already, for those who configure nothing
        text = " ".join(record.getMessage().split()).removeprefix("anyv2v: ")
        tqdm.write(f"anyv2v: {text}", file=self._stream)


def explained(error: Exception) -> tuple[str, int]:
    """Returns what went wrong, and the exit status that it has: 2 for a mistake of the caller."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _is_cpu_out_of_memory(error):
        return "not enough memory: a smaller size or fewer frames need less", 2
    return f"{type(error).__name__}: {error}", 1


def _is_cpu_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
