"""Ends a tool with all processes that it started, also when this process is killed.

Run as a script, it reads the number of a session from stdin and ends that session once stdin is
closed; the system closes it when the process at the other end dies. The script starts quickly,
because it imports nothing of the package.
"""

import os
import signal
import sys
from contextlib import suppress

PASSES = 3
"""Passes over the list of processes: one may start another during a pass."""


def end(session: int) -> None:
    """Kills the processes of a session: its leader's group and, where /proc lists them, others."""
    # macOS raises PermissionError for a group that has ended
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)
    for _ in range(PASSES):
        for pid in _members(session):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _members(session: int) -> list[int]:
    members = []
    with suppress(OSError):
        for name in os.listdir("/proc"):
            with suppress(OSError, ValueError):
                if os.getsid(int(name)) == session:
                    members.append(int(name))
    return members


if __name__ == "__main__":
    message = sys.stdin.buffer.read()
    if message:
        end(int(message))
