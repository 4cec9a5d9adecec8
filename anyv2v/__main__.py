"""The command line's entry: ready for signals before all that takes long is imported."""

import os
import sys
from typing import NoReturn

from anyv2v.cli.process import Signals


def main() -> int:
    """Runs the command in `sys.argv`; gives its exit status."""
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
    """`main` as a process of its own, which a signal no longer disturbs once it is ending."""
    with Signals(last=True) as signals:
        status = main()
    if signals.received is not None:
        # if an `exec` of a text was interrupted, Python would end by SIGINT instead of the status
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
