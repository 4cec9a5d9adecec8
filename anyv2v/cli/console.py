"""Messages to the person at the terminal, one line each, on stderr."""

import sys
from collections.abc import Iterable


def say(message: object) -> None:
    """Prints "anyv2v: " and the message to stderr, in one line whatever line breaks it has."""
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)


def tell(lines: Iterable[str | None]) -> None:
    """Prints each of the lines to stderr as `say` does, and skips those that are None."""
    for line in lines:
        if line is not None:
            say(line)
