"""Doing the edits of clips in one process: what is done is skipped, what fails stops nothing.

Engines call `Worker` in one process or in many. What an edit is, a `Doer` knows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from anyv2v.batch.ledger import Ledger
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.errors import InputError

Status = Literal["done", "skipped", "failed", "busy"]
"""What became of an edit; busy: another run works on its clip."""

OTHERWISE = "there is another output of this name, made with other settings; --force replaces it"
"""What is said of an edit whose output was made with other settings, or by something else."""


@dataclass(frozen=True)
class Begun:
    """An edit is being made from now on; if its process dies, this edit may be why."""

    edit: int
    """Its place among the edits of the clip."""


@dataclass(frozen=True)
class Outcome:
    """What became of one edit."""

    output: str
    """Path of the output below the folder of the batch."""
    status: Status
    """See `Status`."""
    text: str = ""
    """One line: what was written, or what went wrong."""
    seconds: float = 0.0
    """How long it took."""
    notes: tuple[str, ...] = ()
    """Lines to be shown to the user, each once in a batch."""


class Made(NamedTuple):
    """An output that was made."""

    text: str
    """One line that says what was written."""
    notes: tuple[str, ...] = ()
    """Lines to be shown to the user, each once in a batch."""


class Doer(Protocol):
    """Knows what the edits of clips are, and makes them."""

    def key(self, task: Task, edit: TaskEdit) -> str:
        """Returns a hash of all that an output depends on. Raises InputError if that is wrong."""
        ...

    def is_done(self, edit: TaskEdit, key: str) -> bool:
        """Whether the output is there, whole, and has this key."""
        ...

    def is_there(self, edit: TaskEdit) -> bool:
        """Whether there is an output of that name, whatever it is."""
        ...

    def order(self, task: Task) -> Sequence[int]:
        """Returns the places of all edits of a clip in the order in which to make them."""
        ...

    def make(self, task: Task, index: int, force: bool, again: bool) -> Made:
        """Makes one edit, and says what was written.

        force: replace what is there. again: go on where a killed run was. The result must not
        depend on which other edits of the clip are made.
        """
        ...

    def free(self) -> None:
        """Frees what is kept for further edits of the clip."""
        ...

    def explain(self, error: Exception) -> str:
        """Returns what went wrong in one line."""
        ...


@runtime_checkable
class Helper(Protocol):
    """A doer of edits of which several processes may do parts, such as windows of a long clip."""

    def help(self, task: Task, index: int) -> None:
        """Does parts of an edit that another process is making, if it has parts, and returns."""
        ...


class Worker:
    """Does clips, one after the other, in this process."""

    def __init__(self, doer: Doer, ledger: Ledger, force: bool = False):
        """force: replace outputs that were made with other settings; done ones stay."""
        self._doer, self._ledger, self._force = doer, ledger, force

    def do(
        self, task: Task, wait: bool = False, without: Collection[int] = ()
    ) -> Iterator[Begun | Outcome]:
        """Makes the edits of a clip that are not done, and yields what becomes of each.

        wait: wait for another run that works on the clip; else its edits are busy. without: edits
        to leave alone. Exceptions become outcomes, except for those that end the process.
        """
        with self._ledger.lock(task, wait) as held:
            if not held:
                for edit in task.edits:
                    yield Outcome(edit.output, "busy")
                return
            keys: dict[int, str] = {}
            for index, edit in enumerate(task.edits):
                if index not in without and (outcome := self._looked(task, edit, index, keys)):
                    yield outcome
            for index in self._ordered(task) if keys else ():
                if index in keys:
                    yield from self._made(task, index, keys[index])
            self._doer.free()
            self._ledger.end(task)

    def help(self, task: Task, index: int) -> Iterator[Outcome]:
        """Helps another worker with the edit that it makes, such as with windows of a long clip.

        Yields nothing. What goes wrong here, the other one finds too and reports.
        """
        if isinstance(self._doer, Helper):
            with suppress(Exception):
                self._doer.help(task, index)
        yield from ()

    def _looked(
        self, task: Task, edit: TaskEdit, index: int, keys: dict[int, str]
    ) -> Outcome | None:
        """What became of an edit if nothing is to be done, else None: then `keys` has its key."""
        try:
            key = self._doer.key(task, edit)
        except Exception as error:
            return self._failed(task, edit, error, None)
        if not self._doer.is_done(edit, key):
            keys[index] = key
            return None
        self._ledger.forget([edit.output])
        return Outcome(edit.output, "skipped")

    def _ordered(self, task: Task) -> Sequence[int]:
        try:
            return self._doer.order(task)
        except Exception:
            # each edit says what is wrong when it is made
            return range(len(task.edits))

    def _made(self, task: Task, index: int, key: str) -> Iterator[Begun | Outcome]:
        """Makes an edit, and yields what becomes of it."""
        edit, began = task.edits[index], time.monotonic()
        try:
            again = self._ledger.begin(task, edit.output, key)
            force = self._force or again
            if self._doer.is_there(edit) and not force:
                raise InputError(OTHERWISE)
            yield Begun(index)
            made = self._doer.make(task, index, force, again)
            seconds = time.monotonic() - began
            self._ledger.done(edit.output, key, seconds)
            yield Outcome(edit.output, "done", made.text, seconds, made.notes)
        except Exception as error:
            yield self._failed(task, edit, error, key)

    def _failed(self, task: Task, edit: TaskEdit, error: Exception, key: str | None) -> Outcome:
        text = self._doer.explain(error)
        self._ledger.failed(edit.output, task.video, text, key)
        return Outcome(edit.output, "failed", text)


@dataclass
class Totals:
    """How many edits became what."""

    done: int = 0
    skipped: int = 0
    failed: int = 0

    def count(self, outcome: Outcome) -> None:
        """Counts one more edit."""
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)

    @property
    def total(self) -> int:
        """The number of all edits counted."""
        return self.done + self.skipped + self.failed

    def __str__(self) -> str:
        before = f", {self.skipped} done before" if self.skipped else ""
        return f"{self.total} edits: {self.done} done{before}, {self.failed} failed"
