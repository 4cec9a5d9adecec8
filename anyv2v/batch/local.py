"""`--engine local`: workers in processes of this machine, such as one for each GPU."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any

from anyv2v.batch.pool import WorkerDied
from anyv2v.batch.run import Begun, Outcome, Worker
from anyv2v.batch.tasks import Task

GRACE = 10.0
"""Seconds that a process has to clean up after SIGTERM, before it is killed."""

MakeWorker = Callable[[], AbstractContextManager[Worker]]
"""Makes the worker of a process, there; it is sent by pickle. In the context a SIGTERM raises
KeyboardInterrupt, so that half-written files are removed."""


class LocalWorker:
    """A worker in a process of this machine; it is a `pool.RemoteWorker`."""

    def __init__(self, make: MakeWorker):
        self._make = pickle.dumps(make)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._busy, self._ended, self._starting = False, False, threading.Lock()

    def do(self, task: Task, wait: bool, without: Collection[int]) -> Iterator[Begun | Outcome]:
        """See `pool.RemoteWorker.do`."""
        return self._call("do", task, wait, set(without))

    def help(self, task: Task, index: int) -> Iterator[Begun | Outcome]:
        """See `pool.RemoteWorker.help`."""
        return self._call("help", task, index)

    def _call(self, *words: Any) -> Iterator[Begun | Outcome]:
        """Calls a method of the worker in its process, and yields what that yields."""
        pipe = self._started()
        self._busy = True
        try:
            pipe.send(words)
            while (event := pipe.recv()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
            self._busy = False
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDied(_how(self._process.exitcode)) from None

    def end(self) -> None:
        """See `pool.RemoteWorker.end`."""
        with self._starting:
            self._ended = True
            process = self._process
            if self._pipe is not None:
                # a process that waits for the next clip ends by this
                self._pipe.close()
        if process is None:
            return
        if self._busy:
            process.terminate()
        process.join(GRACE)
        if process.is_alive():
            process.kill()
            process.join()

    def _started(self) -> Connection:
        """The pipe to the process, which is started if there is none that lives."""
        with self._starting:
            if self._ended:
                raise WorkerDied("the run is ending")
            if self._process is None or not self._process.is_alive():
                # a forked process could not use CUDA
                context = multiprocessing.get_context("spawn")
                self._pipe, there = context.Pipe()
                arguments = there, self._make
                self._process = context.Process(target=_serve, args=arguments, daemon=True)
                self._process.start()
                there.close()
            assert self._pipe is not None
            return self._pipe


def _serve(pipe: Connection, make: bytes) -> None:
    """The process of a worker: does the clips that come through the pipe until that is closed."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with pickle.loads(make)() as worker:
            while True:
                method, *words = pipe.recv()
                for event in getattr(worker, method)(*words):
                    pipe.send(event)
                pipe.send(None)
    except (EOFError, BrokenPipeError):
        return
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:
        # what no edit is to blame for, such as a full disk under the ledger
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    """Ends this process if the one that has started it ends without a word, as by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _how(code: int | None) -> str:
    return f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
