"""`anyv2v batch`: many clips with their edits, told by a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anyv2v.batch.jobs import read_jobs
from anyv2v.batch.ledger import FAILED, Ledger
from anyv2v.batch.original import read_original
from anyv2v.batch.run import Begun, Outcome, Totals, Worker
from anyv2v.batch.shards import Shard
from anyv2v.batch.tasks import Task
from anyv2v.cli.batch_edits import RUN, Edits, Told
from anyv2v.cli.console import say, tell
from anyv2v.cli.options import parser
from anyv2v.errors import InputError

OVERRIDING = ("weights", "device", "dtype", "offload")
"""Options of `anyv2v batch` that, if given, count instead of those in the job file."""


def run_batch(args: argparse.Namespace) -> int:
    """Runs `anyv2v batch`; returns the exit status, which is 1 if an edit failed and else 0.

    Raises InputError for a job file, an option or a setting of any edit that is wrong, before
    anything is done.
    """
    tasks = read_tasks(args)
    options = {name: getattr(args, name) for name in OVERRIDING if name in args.given}
    told, ledger = Told(args.output, options), Ledger(args.output)
    edits = Edits(told, args.signals)
    check(edits, tasks)
    tell(dict.fromkeys(notice for task in tasks for notice in task.notices))
    shard = Shard.read(args.shard) if args.shard else Shard.of_environment(os.environ)
    tasks = shard.of(tasks[: args.limit])
    ledger.open()
    worker = Worker(edits, ledger, args.force)
    totals = follow(in_this_process(worker, tasks), sum(len(x.edits) for x in tasks), args.quiet)
    print(totals if not totals.failed else f"{totals}, see {os.path.join(args.output, FAILED)}")
    return 1 if totals.failed else 0


def read_tasks(args: argparse.Namespace) -> list[Task]:
    """Returns the clips of JOBS, or of the files of --anyv2v. Raises InputError for a bad file."""
    if (args.jobs is None) == (args.anyv2v is None):
        raise InputError("give either JOBS or --anyv2v TEMPLATE GROUP")
    commands = parser(RUN).commands

    def check(where: str, command: str, options: Mapping[str, Any]) -> None:
        commands[command].parse_mapping(where, {**options, "output": "out.mp4"})

    if args.anyv2v is None:
        return read_jobs(args.jobs, check)
    if len(args.anyv2v) > 2:
        raise InputError(f"--anyv2v takes TEMPLATE and GROUP, not {' '.join(args.anyv2v)}")
    return read_original(*args.anyv2v, check=check)


def check(edits: Edits, tasks: Sequence[Task]) -> None:
    """Raises InputError if an option of any edit is wrong, or two outputs have the same name."""
    seen = set()
    for task in tasks:
        for edit in task.edits:
            parts = edit.output.split("/")
            if os.path.isabs(edit.output) or ".." in parts or edit.output in seen:
                why = "is named twice" if edit.output in seen else "is not below the folder"
                raise InputError(f"output {edit.output!r} {why}")
            seen.add(edit.output)
            edits.parse(task, edit)


def in_this_process(worker: Worker, tasks: Sequence[Task]) -> Iterable[Begun | Outcome]:
    """Does the clips one after the other, those last on which another run works now."""
    later = []
    for task in tasks:
        for event in worker.do(task):
            if isinstance(event, Outcome) and event.status == "busy":
                later.append(task)
                break
            yield event
    for task in later:
        yield from worker.do(task, wait=True)


def follow(events: Iterable[Begun | Outcome], count: int, quiet: bool) -> Totals:
    """Prints a line for each edit that is made or fails; returns what became of all.

    count: the number of edits. quiet: print those that fail alone.
    """
    totals = Totals()
    for event in events:
        if isinstance(event, Begun):
            continue
        totals.count(event)
        if event.status == "failed":
            prefix = "" if event.output in event.text else f"{event.output}: "
            say(f"{prefix}{event.text}")
        elif event.status == "done" and not quiet:
            place = f"[{totals.total}/{count}]"
            print(f"{place} {event.output}: {event.text}, {event.seconds:.1f} s")
            sys.stdout.flush()
    return totals
