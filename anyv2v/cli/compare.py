"""`anyv2v compare`: several methods and editors of the first frame, on the clips of a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyv2v import loading
from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Begun, Outcome, Worker
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.cli.arguments import typed
from anyv2v.cli.batch import ENGINES, OVERRIDING, check, follow, in_this_process
from anyv2v.cli.batch_edits import Edits, Told
from anyv2v.cli.clip import Clip
from anyv2v.cli.console import explained, say, tell
from anyv2v.cli.model import Model
from anyv2v.cli.sidecar import versions
from anyv2v.comparison import blind
from anyv2v.comparison.baselines import BASELINES
from anyv2v.comparison.benchmark import FaultyBenchmark, read_benchmark
from anyv2v.comparison.cells import (
    Cell,
    Comparison,
    Layout,
    edit_tasks,
    frame_tasks,
    method_tasks,
)
from anyv2v.comparison.doing import Others
from anyv2v.comparison.inputs import prepare
from anyv2v.comparison.judging import Further, judge
from anyv2v.comparison.methods import AnyV2V, Baseline, Method, read_frame_sources, read_methods
from anyv2v.comparison.report import write_report
from anyv2v.comparison.results import Findings, markdown
from anyv2v.errors import InputError
from anyv2v.evaluation import clip_model
from anyv2v.evaluation.clip_scores import clip_scores
from anyv2v.media.video import read_video
from anyv2v.weights import hub

EDITORS, METHODS = "given", "ours,paper,copy"
"""Defaults of --editors and --methods."""
OWN = ("video", "frame", "prompt", "output", "size", "frames", "sample_fps", "start_time", "fit")
"""Options of `anyv2v edit` that a method cannot set, because all methods get the same clip."""


def run_compare(args: argparse.Namespace) -> int:
    """Runs `anyv2v compare`; returns the exit status, which is 1 if an edit failed and else 0.

    Raises InputError for options that are wrong, before anything is done. Each fault of the
    benchmark is one line on stderr, and the status is 2.
    """
    if args.answers:
        return _count_answers(args)
    if args.bench is None:
        raise InputError("give the folder BENCH, or --answers of raters")
    editors, methods = args.editors, args.methods
    if not (editors or args.editor):
        editors = EDITORS
    if not (methods or args.method):
        methods = METHODS
    sources = read_frame_sources(_listed(editors), args.editor or [])
    methods = read_methods(_listed(methods), args.method or [])
    _check_methods(methods, args.blind)
    try:
        clips = read_benchmark(args.bench, args.limit)
    except FaultyBenchmark as error:
        for fault in error.faults:
            say(fault)
        return 2
    comparison = Comparison(clips, sources, methods, args.star)
    if not any(comparison.cells()):
        raise InputError(f"{args.bench}: {comparison.gaps()[0]}; nor has any other edit")
    # it is loaded later, when the networks of the edits are gone
    named = args.clip is not None and hub.name_of(args.clip) is not None
    if args.clip is not None and not named and not Path(args.clip).is_dir():
        raise InputError(f"--clip {args.clip}: there is no such folder")
    run = _Run(args, comparison)
    failed = run.make()
    run.report()
    return 1 if failed else 0


class _Run:
    """One run of a comparison; what an earlier one has done in the folder is not done again."""

    def __init__(self, args: argparse.Namespace, comparison: Comparison):
        self._args, self._comparison = args, comparison
        self._layout, self._ledger = Layout(Path(args.output)), Ledger(args.output)
        options = {name: getattr(args, name) for name in OVERRIDING}
        given = {name: value for name, value in options.items() if value is not None}
        self._told = Told(args.output, given)
        self._rates: dict[str, float] = {}
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}

    def make(self) -> bool:
        """Makes all that is not there; returns whether anything failed."""
        args, comparison, layout = self._args, self._comparison, self._layout
        seeded = {clip.name: {"seed": args.seed} for clip in comparison.clips}
        # wrong options of a method are found before anything is written
        check(Edits(self._told, args.signals), edit_tasks(comparison, layout, seeded))
        tell(comparison.gaps())
        self._ledger.open()
        shared = prepare(comparison, layout, self._reading, args.fit)
        self._rates = {name: options["sample_fps"] for name, options in shared.items()}
        model = typed(Model, args)
        setup = model.torch_device, model.torch_dtype
        others = Others(args.output, lambda e: explained(e)[0], args.tool_timeout, *setup)

        def here(tasks: Sequence[Task]) -> Iterable[Begun | Outcome]:
            return in_this_process(Worker(others, self._ledger, args.force), tasks)

        self._do(here, frame_tasks(comparison, layout, args.seed))
        shared = {name: options | {"seed": args.seed} for name, options in shared.items()}
        with ExitStack() as stack:
            engine = ENGINES[args.engine]
            self._do(
                lambda tasks: engine(args, self._told, self._ledger, tasks, stack),
                edit_tasks(comparison, layout, shared),
            )
        self._do(here, method_tasks(comparison, layout, self._rates, args.seed))
        return bool(self._failed)

    def report(self) -> None:
        """Judges what is done, writes the table, the page and the blind page, and prints them."""
        args = self._args
        results = list(judge(self._comparison, self._layout, self._is_done, _clip_scores(args)))
        findings = Findings(self._comparison, results, args.seed)
        notes = [*self._comparison.gaps(), *(f"{k}: {v}" for k, v in self._failed.items())]
        print(write_report(findings, self._layout, self._rates, self._about(), notes), end="")
        if args.blind:
            self._write_blind(_listed(args.blind))

    def _write_blind(self, methods: Sequence[str]) -> None:
        """Writes the page for raters and its key."""
        pairs = blind.pairs_of(self._comparison, methods, self._is_done)
        if not pairs:
            say("--blind: no edit was made by both methods of a pair; no page is written")
            return
        folder, rate = self._layout.folder, self._rates.__getitem__
        trials = blind.write_blind(folder, pairs, self._frames, rate, self._args.seed)
        page = folder / blind.FOLDER / blind.PAGE
        print(f"{page}: {len(trials)} pairs; keep {blind.KEY} from the raters")

    def _do(
        self,
        run: Callable[[Sequence[Task]], Iterable[Begun | Outcome]],
        tasks: Sequence[Task],
    ) -> None:
        """Does tasks, without the edits whose first frame was not made."""
        ready = [replace(task, edits=tuple(filter(self._has_frame, task.edits))) for task in tasks]
        ready = [task for task in ready if task.edits]
        if ready:
            count = sum(len(task.edits) for task in ready)
            follow(self._noted(run(ready)), count, self._args.quiet)

    def _noted(self, events: Iterable[Begun | Outcome]) -> Iterator[Begun | Outcome]:
        for event in events:
            if isinstance(event, Outcome) and event.status in ("done", "skipped"):
                self._done.add(event.output)
            elif isinstance(event, Outcome) and event.status == "failed":
                self._failed[event.output] = event.text
            yield event

    def _has_frame(self, edit: TaskEdit) -> bool:
        frame = edit.settings.get("frame")
        return frame not in {str(self._layout.folder / output) for output in self._failed}

    def _is_done(self, cell: Cell) -> bool:
        return cell.path in self._done

    def _reading(self, video: Path) -> dict[str, Any]:
        return typed(Clip, argparse.Namespace(**vars(self._args), video=str(video))).reading()

    def _frames(self, what: Cell | str) -> np.ndarray:
        layout = self._layout
        path = layout.clip(what) if isinstance(what, str) else layout.output(what)
        return read_video(path).frames

    def _about(self) -> dict[str, Any]:
        args = self._args
        names = [name for name in args.settable if name not in ("output", "answers")]
        return {
            "settings": {name: getattr(args, name) for name in names},
            "weights": loading.peek(args.weights).fingerprint,
            "versions": versions(),
        }


def _check_methods(methods: Sequence[Method], shown: str | None) -> None:
    """Raises InputError for settings that are not a method's own, and unknown names of --blind."""
    for method in methods:
        own = [name for name in OWN if isinstance(method, AnyV2V) and name in method.settings]
        if own:
            option = own[0].replace("_", "-")
            raise InputError(f"--method {method.name}: --{option} is the same for all methods")
        if isinstance(method, Baseline):
            BASELINES[method.name].check()
    known = [method.name for method in methods]
    if unknown := [name for name in _listed(shown) if name not in known[1:]]:
        raise InputError(f"--blind: {unknown[0]!r} is not one of {', '.join(known[1:])}")


def _clip_scores(args: argparse.Namespace) -> Further | None:
    """The metrics of the CLIP of --clip."""
    if args.clip is None:
        return None
    model = typed(Model, args)
    dtype = model.torch_dtype or torch.float32
    loaded = clip_model.load(args.clip, model.torch_device, dtype)
    return lambda frames, prompt, frame: clip_scores(loaded, frames, prompt, frame)


def _count_answers(args: argparse.Namespace) -> int:
    """Prints what raters answered on the page of a comparison."""
    key = Path(args.output) / blind.KEY
    counts = blind.count_answers(key, [Path(path) for path in args.answers])
    columns = ["question", "method", "over", "wins", "losses", "equal", "share of wins [95 %]"]
    rows = []
    for count in counts:
        share, low, high = count.share
        text = "" if share is None else f"{share:.2f} [{low:.2f}, {high:.2f}]"
        numbers = (count.wins, count.losses, count.equal)
        rows.append([count.question, count.method, count.over, *map(str, numbers), text])
    print(markdown(columns, rows), end="")
    return 0


def _listed(text: str | None) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
