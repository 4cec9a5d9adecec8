"""The exceptions of this package: wrong input, and values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 2000
"""Most characters of a message, because a file may put text of any length into one."""


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
    """A network gave infinities or NaN. The message says which one, where, and what to do.

    Steps and frames are counted from 0, as `on_step` counts them. The command line exits with
    status 1 and writes nothing.
    """

    def __init__(self, message: str, batch_indices: Iterable[int] = ()):
        super().__init__(message)
        self.batch_indices = tuple(batch_indices)
        """Positions, within the batch, of the edits or frames whose values are not finite."""
