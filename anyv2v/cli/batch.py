"""`anyv2v batch`: many clips with their edits, told by a file."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os.path import abspath
from typing import Any

import torch
from tqdm import tqdm

from anyv2v.batch.jobs import read_jobs
from anyv2v.batch.ledger import FAILED, Ledger
from anyv2v.batch.local import LocalWorker
from anyv2v.batch.original import read_original
from anyv2v.batch.paths import is_url
from anyv2v.batch.pool import Pool
from anyv2v.batch.ray_engine import RayWorker, connected
from anyv2v.batch.run import Begun, Outcome, Totals, Worker
from anyv2v.batch.shards import Shard
from anyv2v.batch.tasks import Task
from anyv2v.cli.batch_edits import RUN, Edits, Told
from anyv2v.cli.batch_plan import Plan
from anyv2v.cli.console import say, tell, verbose
from anyv2v.cli.far import Far
from anyv2v.cli.options import parser
from anyv2v.cli.process import Signals
from anyv2v.errors import InputError

OVERRIDING = ("weights", "device", "dtype", "offload")
"""Options of `anyv2v batch` that, if given, count instead of those in the job file."""


def run_batch(args: argparse.Namespace) -> int:
    """Runs `anyv2v batch`; returns the exit status, which is 1 if an edit failed and else 0.

    Raises InputError for a job file, an option or a setting of any edit that is wrong, before
    anything is done.
    """
    if not args.output:
        raise InputError("-o '': is no folder; give a path such as out")
    tasks = read_tasks(args)
    options = {name: getattr(args, name) for name in OVERRIDING if name in args.given}
    told, ledger = Told(args.output, options), Ledger(Far(args.output).folder)
    edits = Edits(told, args.signals)
    check(edits, tasks)
    tell(dict.fromkeys(notice for task in tasks for notice in task.notices))
    shard = Shard.read(args.shard) if args.shard else Shard.of_environment(os.environ)
    tasks = shard.of(tasks[: args.limit])
    if args.dry_run:
        return 0 if Plan(edits, args.force).print(tasks) else 1
    ledger.open()
    with ExitStack() as stack:
        events = ENGINES[args.engine](args, told, ledger, tasks, stack)
        totals = follow(events, sum(len(task.edits) for task in tasks), args.quiet)
    print(f"{totals}, see {ledger.folder / FAILED}" if totals.failed else totals)
    return 1 if totals.failed else 0


@dataclass(frozen=True)
class MakeWorker:
    """Makes the worker of a process; see `batch.local.MakeWorker`."""

    told: Told
    """What all edits share."""
    force: bool
    """Replace outputs that were made with other settings."""
    device: str | None = None
    """Device of the process, or None."""
    threads: int | None = None
    """Number of threads that PyTorch computes with on the CPU; None leaves it as it is."""
    signals: bool = True
    """Whether signals that end the process raise KeyboardInterrupt."""
    verbose: int = 0
    """How often -v was given."""

    @contextmanager
    def __call__(self) -> Iterator[Worker]:
        """Yields the worker."""
        with ExitStack() as stack:
            signals = Signals()
            if self.signals:
                stack.enter_context(signals)
            # tqdm's own is a semaphore of the system, which a killed process would leave behind
            tqdm.set_lock(threading.RLock())
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            stack.enter_context(verbose(self.verbose))
            edits = Edits(self.told, signals, self.device)
            yield Worker(edits, Ledger(Far(self.told.output).folder), self.force)


def _local(
    args: argparse.Namespace,
    told: Told,
    ledger: Ledger,
    tasks: Sequence[Task],
    _: ExitStack,
) -> Iterable[Begun | Outcome]:
    """`--engine local`: one process for each GPU, or `--workers` of them; one is this process."""
    gpus = torch.cuda.device_count() if "device" not in args.given else 0
    rank = os.environ.get("LOCAL_RANK", "")
    if rank.isdecimal() and gpus:
        # torchrun has started one process for each GPU already
        devices = [f"cuda:{int(rank) % gpus}"] * (args.workers or 1)
    else:
        count = args.workers or gpus or 1
        devices = [f"cuda:{i % gpus}" if gpus else None for i in range(count)]
    if len(devices) == 1:
        worker = Worker(Edits(told, args.signals, devices[0]), ledger, args.force)
        return in_this_process(worker, tasks)
    threads = _threads(len(devices))
    makes = [
        MakeWorker(told, args.force, device, threads, verbose=args.verbose) for device in devices
    ]
    return Pool([LocalWorker(make) for make in makes], ledger).do(tasks)


def _ray(
    args: argparse.Namespace,
    told: Told,
    ledger: Ledger,
    tasks: Sequence[Task],
    stack: ExitStack,
) -> Iterable[Begun | Outcome]:
    """`--engine ray`: an actor for each GPU, or `--workers` of them."""
    gpus = stack.enter_context(connected(args.workers or 1))
    count = args.workers or gpus or 1
    # folders are the same for actors, who have another current one
    told = replace(told, output=told.output if is_url(told.output) else abspath(told.output))
    make = MakeWorker(told, args.force, None, _threads(count), False, args.verbose)
    return Pool([RayWorker(make, min(gpus, 1)) for _ in range(count)], ledger).do(tasks)


def _threads(workers: int) -> int:
    """Threads of each of several workers on the CPUs of one machine, so that they do not wait."""
    return max(1, torch.get_num_threads() // workers)


ENGINES = {"local": _local, "ray": _ray}
"""Value of --engine -> the function that runs a batch by it."""


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
    totals, said = Totals(), set[str]()
    for event in events:
        if isinstance(event, Begun):
            continue
        totals.count(event)
        tell(note for note in event.notes if note not in said)
        said.update(event.notes)
        if event.status == "failed":
            prefix = "" if event.output in event.text else f"{event.output}: "
            say(f"{prefix}{event.text}")
        elif event.status == "done" and not quiet:
            place = f"[{totals.total}/{count}]"
            print(f"{place} {event.output}: {event.text}, {event.seconds:.1f} s")
            sys.stdout.flush()
    return totals
