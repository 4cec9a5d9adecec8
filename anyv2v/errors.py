"""The exceptions of this package, for wrong input and for values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 2000
"""The most characters of an InputError's message: text from a file, quoted in it, may be longer."""


class InputError(ValueError):
    """An argument, a file or another input is wrong.

    The message is one line: what is wrong, with its value, and what would be right. The command
    line prints the message and exits with status 2.
    """

    def __init__(self, message: str):
        text = " ".join(message.splitlines())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 500]} ... {text[-400:]}"
        super().__init__(text)


class NotFiniteError(RuntimeError):
    """A network produced infinities or NaN.

    The message says which network did so, where, and what to do. Steps and frames are counted from
    0, as `on_step` counts them. The command line exits with status 1 and writes nothing.
    """

    def __init__(self, message: str, batch_indices: Iterable[int] = ()):
        super().__init__(message)
        self.batch_indices = tuple(batch_indices)
        """Positions, counted from 0 within the batch, of edits or frames whose values are not
        finite."""
