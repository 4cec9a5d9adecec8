"""The command line's entry: ready for signals before all that takes long is imported."""

import sys

from anyv2v.process import Signals


def main() -> int:
    """Runs the command in `sys.argv`; gives its exit status."""
    with Signals() as signals:
        try:
            from anyv2v.cli import main as run

            return run()
        except KeyboardInterrupt:
            # during the imports: the command itself says so on its own
            print("anyv2v: interrupted", file=sys.stderr)
            return signals.status


if __name__ == "__main__":
    sys.exit(main())
