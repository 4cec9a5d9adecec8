"""The one exception that means: the caller got something wrong."""

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
