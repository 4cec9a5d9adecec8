"""Lines for the person at the terminal, all on stderr and all in one form."""

import sys
from collections.abc import Iterable


def say(message: object) -> None:
    """Prints one line, whatever line breaks the message has."""
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)


def tell(lines: Iterable[str | None]) -> None:
    """Prints the lines, but for those that are None."""
    for line in lines:
        if line is not None:
            say(line)
