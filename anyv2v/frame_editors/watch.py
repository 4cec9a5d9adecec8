"""Ending a tool with all that it started, also when this process is killed.

As a script it is told a session on its stdin, and ends it when that is closed, which the death of
whoever has the other end does too. It starts at once, for it imports nothing of the package.
"""

import os
import signal
import sys
from contextlib import suppress

PASSES = 3
"""Over the processes that there are: one may be starting another."""


def end(session: int) -> None:
    """Kills every process of a session: its leader's group and, where /proc lists them, others."""
    # of a group that has ended, macOS says that it may not be killed
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)
    for _ in range(PASSES):
        for pid in _members(session):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _members(session: int) -> list[int]:
    found = []
    with suppress(OSError):
        for name in os.listdir("/proc"):
            with suppress(OSError, ValueError):
                if os.getsid(int(name)) == session:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    told = sys.stdin.buffer.read()
    if told:
        end(int(told))
