"""The entry point of the command line, which handles signals before it imports PyTorch."""

import os
import sys
from typing import NoReturn

from anyv2v.cli.process import Signals


def main() -> int:
    """Runs the command in `sys.argv` and returns its exit status.

    The status is 128 + the signal's number if a signal interrupts the imports, and 1 if they fail.
    """
    with Signals() as signals:
        try:
            from anyv2v.cli.main import main as run

            # of a signal that came during the imports, the exception may be lost in a callback
            signals.check()
            return run()
        except KeyboardInterrupt:
            # during the imports: the command itself says so on its own
            print("anyv2v: interrupted", file=sys.stderr, flush=True)
            return signals.status
        except (ImportError, MemoryError, OSError) as error:
            # likewise: something is missing, or there is no memory even for the imports
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"anyv2v: cannot be loaded: {reason}", file=sys.stderr, flush=True)
            return 1


def command() -> NoReturn:
    """Runs `main` as the whole process, and ends the process with its exit status.

    Signals that arrive while the process is ending are ignored.
    """
    with Signals(last=True) as signals:
        status = main()
    if signals.received is not None:
        # if an `exec` of a text was interrupted, Python would end by SIGINT instead of the status
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
