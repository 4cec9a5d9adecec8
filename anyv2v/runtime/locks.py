"""Locks of files, which several processes respect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds the lock of a file inside the block; yields whether it could be had.

    path: of the file, which is made if only it is missing. wait: wait until another process frees
    it. The system frees the lock of a process that ends, however it ends. On a file system without
    locks it is always had.
    """
    # a lock without the system's help would outlive a killed process
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    held = _acquired(lock, wait)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _acquired(lock: FileLock, wait: bool) -> bool:
    """Whether a lock was acquired; waiting is done in short pieces, so that signals are heard."""
    while True:
        try:
            lock.acquire()
            return True
        except Timeout:
            if not wait:
                return False
            time.sleep(POLL)
        except OSError:
            return True
