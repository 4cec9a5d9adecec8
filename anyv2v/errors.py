"""What goes wrong by what the caller gave, and what goes wrong in the computation."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message; a file may put anything into one."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, with its value, and what would be right.

    The command line prints it and exits with status 2.
    """

    def __init__(self, message: str):
        text = " ".join(message.splitlines())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 500]} ... {text[-400:]}"
        super().__init__(text)


class NotFiniteError(RuntimeError):
    """A network gave infinities or NaN. The message says which, where, and what to do.

    Steps and frames are counted from 0, as `on_step` counts them. The command line exits with
    status 1, and nothing is written.
    """

    def __init__(self, message: str, rows: Iterable[int] = ()):
        super().__init__(message)
        self.rows = tuple(rows)
        """Which of what was computed together: of several edits, those of the batch."""
