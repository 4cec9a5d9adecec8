"""The edits of a batch, each made as `anyv2v edit` makes it, with what they can share."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyv2v import loading
from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Made
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import is_source
from anyv2v.cli.console import explained, tell
from anyv2v.cli.edit import SomeFailed, help_edit, run_edit
from anyv2v.cli.edit_key import edit_key
from anyv2v.cli.far import Far
from anyv2v.cli.invert import run_reconstruct
from anyv2v.cli.model import Model
from anyv2v.cli.options import parser
from anyv2v.cli.process import Signals
from anyv2v.cli.sharing import Shared, inversion_key
from anyv2v.cli.sidecar import Provenance, is_there, read_sidecar, sidecar_of
from anyv2v.errors import InputError
from anyv2v.media.sequence import numbered

RUN = {"edit": run_edit, "reconstruct": run_reconstruct}
"""Command of an edit -> the function that runs it."""


@dataclass(frozen=True)
class Told:
    """What the command line of a batch says of all its edits; it can be sent to other processes."""

    output: str
    """Folder of the outputs, or its URL."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `anyv2v edit` that count instead of those in the tasks."""


class Edits:
    """Makes the edits of clips in one process; it is a `batch.run.Doer` and `Helper`."""

    def __init__(self, told: Told, signals: Signals, device: str | None = None):
        """device: that of the networks, if this process has one for itself; else as the tasks say.

        signals: looked at in each step.
        """
        self._told, self._signals, self._device = told, signals, device
        self._far = Far(told.output)
        self._ledger = Ledger(self._far.folder)
        self._commands = parser({name: run for name, run in RUN.items()}).commands
        self._shared, self._groups = Shared(), {}

    def parse(self, task: Task, edit: TaskEdit, fetch: bool = False) -> argparse.Namespace:
        """Returns the options of an edit, filled; raises InputError for wrong ones.

        Files are not looked at. fetch: replace files that are URLs by copies here.
        """
        if edit.command not in RUN:
            raise InputError(f"{edit.output}: {edit.command} is none of {', '.join(RUN)}")
        output, device = self._ledger.path(edit.output), self._device
        values = {**task.options(edit), **self._told.options, "output": str(output)}
        values |= {} if device is None else {"device": device}
        values = self._far.fetched(values) if fetch else values
        args = self._commands[edit.command].parse_mapping(edit.output, values)
        known = loading.peek(args.weights)
        if task.backbone not in (None, known.backbone):
            raise InputError(
                f"{edit.output}: is told for {task.backbone}; --weights {args.weights} are of "
                f"{known.backbone}"
            )
        notes = settings.fill(args, known.defaults, known.original, is_source(args.video))
        args.signals, args.sharing, args.notes = self._signals, self._shared, notes
        args.quiet, args.fingerprint = True, known.fingerprint
        return args

    def key(self, task: Task, edit: TaskEdit) -> str:
        """See `Doer.key`."""
        args = self.parse(task, edit, fetch=True)
        return edit_key(args, args.fingerprint, Provenance(args).inputs)

    def is_done(self, edit: TaskEdit, key: str) -> bool:
        """See `Doer.is_done`."""
        if self._far.url is not None:
            return self._far.key(edit.output) == key
        path = self._ledger.path(edit.output)
        # what was emptied, or replaced by a folder, is made again
        whole = numbered(path) is not None or (path.is_file() and path.stat().st_size > 0)
        return read_sidecar(sidecar_of(path)).get("key") == key and whole and self.is_there(edit)

    def is_there(self, edit: TaskEdit) -> bool:
        """See `Doer.is_there`."""
        if self._far.url is not None:
            return self._far.key(edit.output) is not None
        return is_there(self._ledger.path(edit.output))

    def order(self, task: Task) -> Sequence[int]:
        """Returns the places of the edits, those with the same inversion one after the other."""
        self._groups = {}
        self._groups = groups = self.groups(task)
        return sorted(range(len(task.edits)), key=lambda i: min(groups[i][1]))

    def make(self, task: Task, index: int, force: bool, again: bool) -> Made:
        """See `Doer.make`."""
        edit = task.edits[index]
        key, alike = self._groups.get(index, (edit.output, [index]))
        others = {i: self.parse(task, task.edits[i], fetch=True) for i in alike}
        args = others[index]
        self._shared.begin(key, [*others.values()], self._unfinished(task, key))
        output = Path(args.output[0] if edit.command == "edit" else args.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        # what was not sent, as when a connection broke, is no one's
        args.force = force or self._far.url is not None
        if hasattr(args, "window"):
            args.resume = again and os.path.isdir(f"{output}.unfinished")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            tell(args.notes)
            try:
                RUN[edit.command](args)
            except SomeFailed as failed:
                raise next(iter(failed.failures.values())) from None
        self._far.send(edit.output)
        text = out.getvalue().strip().splitlines()[-1].removeprefix(f"{output}: ")
        return Made(text, tuple(x.removeprefix("anyv2v: ") for x in err.getvalue().splitlines()))

    def help(self, task: Task, index: int) -> None:
        """See `Helper.help`: the parts are the windows of a long clip."""
        edit = task.edits[index]
        if edit.command == "edit" and os.path.isdir(f"{self._ledger.path(edit.output)}.unfinished"):
            args = self.parse(task, edit, fetch=True)
            key = self._inversion_key(args)
            self._shared.begin(key, [args], self._unfinished(task, key))
            with contextlib.redirect_stdout(io.StringIO()):
                help_edit(args)

    def free(self) -> None:
        """See `Doer.free`."""
        self._shared.drop()

    def explain(self, error: Exception) -> str:
        """See `Doer.explain`."""
        return explained(error)[0]

    def groups(self, task: Task) -> dict[int, tuple[str, list[int]]]:
        """Returns, by place: what the inversion depends on, and the edits with the same one.

        An edit that is wrong has a group of its own.
        """
        groups, keys = defaultdict(list), {}
        for i, edit in enumerate(task.edits):
            try:
                keys[i] = self._inversion_key(self.parse(task, edit, fetch=True))
            except Exception:
                # it says what is wrong when it is made
                keys[i] = edit.output
            groups[keys[i]].append(i)
        return {i: (key, groups[key]) for i, key in keys.items()}

    def _inversion_key(self, args: argparse.Namespace) -> str:
        return inversion_key(args, lambda: self._shared.editor(typed(Model, args)))

    def _unfinished(self, task: Task, key: str) -> Path:
        """Where the inversion with this key is saved until all edits of the clip are made."""
        return self._ledger.scratch(task) / f"{_digest(key)}.unfinished"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
