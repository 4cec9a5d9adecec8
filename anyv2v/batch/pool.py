"""Several workers at once, each in a process of its own, whatever engine starts the processes."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Begun, Outcome
from anyv2v.batch.tasks import Task

DEATHS = 2
"""So often an edit may end the process that makes it; then it has failed."""
EVERY = 0.5
"""Seconds after which a worker without a clip looks again whether it can help another."""


class WorkerDied(Exception):
    """The process of a worker has ended; the message says how."""


class RemoteWorker(Protocol):
    """A `run.Worker` in a process of its own, which is started when it is needed."""

    def do(self, task: Task, wait: bool, without: Collection[int]) -> Iterator[Begun | Outcome]:
        """Yields what `run.Worker.do` yields there. Raises `WorkerDied` if the process ends."""
        ...

    def help(self, task: Task, index: int) -> Iterator[Begun | Outcome]:
        """Runs `run.Worker.help` there. Raises `WorkerDied` if the process ends."""
        ...

    def end(self) -> None:
        """Ends the process, which removes what it has half written; no other is started."""
        ...


class Pool:
    """Gives clips to workers as they get free, and starts again those that die."""

    def __init__(self, workers: Sequence[RemoteWorker], ledger: Ledger):
        self._workers, self._ledger = workers, ledger
        self._todo, self._busy = deque[Task](), deque[Task]()
        self._events = queue.SimpleQueue[Outcome | Exception | None]()
        self._ending = threading.Event()
        self._making: dict[int, tuple[Task, int] | None] = {}

    def do(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Does the clips, and yields what becomes of each edit as soon as it is known.

        Clips on which another run works come last. If the iteration is left early, as by a signal,
        all workers are ended.
        """
        self._todo.extend(tasks)
        threads = [
            # also those for which there is no clip: they may help with a long one
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in (self._workers if tasks else ())
        ]
        try:
            for thread in threads:
                thread.start()
            serving = len(threads)
            while serving:
                event = self._events.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    serving -= 1
                else:
                    yield event
        finally:
            self._ending.set()
            for worker in self._workers:
                worker.end()

    def _serve(self, worker: RemoteWorker) -> None:
        """Does clips by one worker until none is left; runs in a thread of its own."""
        try:
            while not self._ending.is_set():
                wait = not self._todo
                try:
                    task = (self._busy if wait else self._todo).popleft()
                except IndexError:
                    break
                _Doing(self, task).by(worker, wait)
            self._help(worker)
            self._events.put(None)
        except Exception as error:
            self._events.put(error)

    def _help(self, worker: RemoteWorker) -> None:
        """Helps the other workers with their last edits, while there are any."""
        deaths = 0
        while self._making and deaths < DEATHS and not self._ending.wait(EVERY):
            for making in list(self._making.values()):
                try:
                    if making is not None:
                        deque(worker.help(*making), 0)
                except WorkerDied:
                    deaths += 1


class _Doing:
    """One clip that is being done, by several processes in turn if they die."""

    def __init__(self, pool: Pool, task: Task):
        self._pool, self._task = pool, task
        self._events = pool._events
        self._finished: set[int] = set()
        self._deaths = Counter[int | None]()

    def by(self, worker: RemoteWorker, wait: bool) -> None:
        """Does the clip; wait: wait for another run that works on it."""
        self._pool._making[id(self)] = None
        try:
            self._by(worker, wait)
        finally:
            del self._pool._making[id(self)]

    def _by(self, worker: RemoteWorker, wait: bool) -> None:
        places = {edit.output: i for i, edit in enumerate(self._task.edits)}
        while len(self._finished) < len(places):
            current = None
            try:
                for event in worker.do(self._task, wait, self._finished):
                    if isinstance(event, Begun):
                        current = event.edit
                        self._pool._making[id(self)] = self._task, current
                        continue
                    if event.status == "busy":
                        self._pool._busy.append(self._task)
                        return
                    current = self._pool._making[id(self)] = None
                    self._finished.add(places[event.output])
                    self._events.put(event)
                return
            except WorkerDied as death:
                if self._pool._ending.is_set():
                    return
                self._count(current, death)
                # the system may take a moment to free the lock of the process
                wait = True

    def _count(self, current: int | None, death: WorkerDied) -> None:
        """Counts a death against the edit that was being made, or against all that are left."""
        self._deaths[current] += 1
        if self._deaths[current] < DEATHS:
            return
        every = range(len(self._task.edits))
        failed = [i for i in every if i not in self._finished] if current is None else [current]
        for i in failed:
            output = self._task.edits[i].output
            text = f"its process ended {DEATHS} times ({death})"
            self._pool._ledger.failed(output, self._task.video, text, None)
            self._finished.add(i)
            self._events.put(Outcome(output, "failed", text))
