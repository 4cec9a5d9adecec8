"""`--engine ray`: workers are actors of Ray, on one machine or on a cluster.

Ray starts the actors where there are GPUs, and others for those that die. What is done is told by
the outputs and the ledger, as with any engine: Ray itself remembers nothing of a run whose driver
has ended. On a cluster, all machines must see the same folders.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from anyv2v.batch.local import MakeWorker
from anyv2v.batch.pool import WorkerDied
from anyv2v.batch.run import Begun, Outcome
from anyv2v.batch.tasks import Task
from anyv2v.errors import InputError


@contextmanager
def connected(cpus: int = 1) -> Iterator[int]:
    """Connects to Ray for the block; yields the number of GPUs that it has.

    cpus: how many CPUs a Ray on this machine shall count with, at least. The cluster that the
    environment variable RAY_ADDRESS names is used if it is set; else Ray is started here, without
    its dashboard and without statistics of its use. Raises InputError if Ray is not installed.
    """
    ray = _ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": "error"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"include_dashboard": False, "num_cpus": max(cpus, os.cpu_count() or 1)}
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {x: signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)}
    ray.init(**options)
    try:
        if in_main:
            # Ray's own handlers would end the process with another status
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


class RayWorker:
    """A worker that is an actor of Ray; it is a `pool.RemoteWorker`."""

    def __init__(self, make: MakeWorker, gpus: int):
        """gpus: number of GPUs that the actor has for itself, 0 or 1."""
        self._ray = ray = _ray()
        self._ended = False
        # another actor takes the place of one that died: Ray restarts actors by itself, but calls
        # fail as long as that takes
        self._kind, self._make = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor), make
        self._actor = self._kind.remote(make)

    def do(self, task: Task, wait: bool, without: Collection[int]) -> Iterator[Begun | Outcome]:
        """See `pool.RemoteWorker.do`."""
        return self._call("do", task, wait, set(without))

    def help(self, task: Task, index: int) -> Iterator[Begun | Outcome]:
        """See `pool.RemoteWorker.help`."""
        return self._call("help", task, index)

    def _call(self, *words: Any) -> Iterator[Begun | Outcome]:
        """Calls a method of the worker in its actor, and yields what that yields."""
        try:
            for reference in self._actor.call.options(num_returns="streaming").remote(*words):
                yield self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._ray.kill(self._actor)
            if not self._ended:
                self._actor = self._kind.remote(self._make)
            raise WorkerDied(str(error).splitlines()[0]) from None

    def end(self) -> None:
        """See `pool.RemoteWorker.end`; what the actor has half written is removed later."""
        self._ended = True
        self._ray.kill(self._actor)


class _Actor:
    """What runs in the process of an actor."""

    def __init__(self, make: MakeWorker):
        self._worker = ExitStack().enter_context(make())

    def call(self, method: str, *words: Any) -> Iterator[Begun | Outcome]:
        yield from getattr(self._worker, method)(*words)


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install '.[ray]'") from None
    return ray
