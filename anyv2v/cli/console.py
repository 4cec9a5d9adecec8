"""Messages to the person at the terminal, one line each, on stderr."""

import sys
from collections.abc import Iterable

import torch

from anyv2v.errors import InputError


def say(message: object) -> None:
    """Prints "anyv2v: " and the message to stderr, in one line whatever line breaks it has."""
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)


def tell(lines: Iterable[str | None]) -> None:
    """Prints each of the lines to stderr as `say` does, and skips those that are None."""
    for line in lines:
        if line is not None:
            say(line)


def explained(error: Exception) -> tuple[str, int]:
    """Returns what went wrong, and the exit status that it has: 2 for a mistake of the caller."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _is_cpu_out_of_memory(error):
        return "not enough memory: a smaller size or fewer frames need less", 2
    return f"{type(error).__name__}: {error}", 1


def _is_cpu_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
