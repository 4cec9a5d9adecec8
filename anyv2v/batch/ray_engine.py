"""`--engine ray`: workers are actors of Ray, on one machine or on a cluster.

Ray starts the actors where there are GPUs, and starts those again that die. What is done is told by
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
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(_Actor)
        self._actor = actor.remote(make)

    def do(self, task: Task, wait: bool, without: Collection[int]) -> Iterator[Begun | Outcome]:
        """See `pool.RemoteWorker.do`."""
        try:
            events = self._actor.do.options(num_returns="streaming")
            for reference in events.remote(task, wait, set(without)):
                yield self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDied(str(error).splitlines()[0]) from None

    def end(self) -> None:
        """See `pool.RemoteWorker.end`; what the actor has half written is removed later."""
        self._ray.kill(self._actor)


class _Actor:
    """What runs in the process of an actor."""

    def __init__(self, make: MakeWorker):
        self._worker = ExitStack().enter_context(make())

    def do(self, task: Task, wait: bool, without: Collection[int]) -> Iterator[Begun | Outcome]:
        yield from self._worker.do(task, wait, without)


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'anyv2v[ray]'") from None
    return ray
