"""Ends a command and all processes that it started, even when the process that runs it is killed.

Run as a script, this module reads the ID of a session (of POSIX processes) from stdin and ends that
session once stdin is closed, which the system does when the process at the other end dies. The
script starts quickly, because it imports nothing from the package.
"""

import os
import signal
import sys
from contextlib import suppress

PASSES = 3
"""Passes over the list of processes, because a process may start another during a pass."""


def end(session: int) -> None:
    """Kills the processes of a POSIX session, such as one that `start_new_session` started.

    session: the process ID of the session's leader. Its process group is killed on every system,
    processes in other groups only where /proc lists them.
    """
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
