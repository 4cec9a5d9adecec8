"""The one exception that means: the caller got something wrong."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, with its value, and what would be right.

    The command line prints it and exits with status 2.
    """
