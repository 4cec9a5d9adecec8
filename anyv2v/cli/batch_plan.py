"""`anyv2v batch --dry-run`: what would be done, and what it would cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from anyv2v.batch.run import OTHERWISE
from anyv2v.batch.tasks import Task
from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.batch_edits import Edits
from anyv2v.cli.clip import Clip
from anyv2v.cli.invert import one_window
from anyv2v.cli.model import Model
from anyv2v.cli.sharing import editor_of


@dataclass(frozen=True)
class Work:
    """What some edits cost, as `anyv2v plan` predicts it."""

    inversion: int = 0
    """Evaluations of the network to invert, at most."""
    sampling: int = 0
    """Branches of the network to sample."""
    peak: int = 0
    """The most bytes on the device at one time, weights included."""

    def __add__(self, other: Work) -> Work:
        together = self.inversion + other.inversion, self.sampling + other.sampling
        return Work(*together, max(self.peak, other.peak))

    def __str__(self) -> str:
        return (
            f"at most {self.inversion} evaluations to invert, {self.sampling} branches to sample, "
            f"about {self.peak / 1e9:.3g} GB"
        )


class Plan:
    """The plan of a batch, which is printed clip by clip."""

    def __init__(self, edits: Edits, force: bool):
        """force: outputs that were made with other settings would be replaced."""
        self._edits, self._force = edits, force
        self._known: dict[str, Work] = {}

    def print(self, tasks: Sequence[Task]) -> bool:
        """Prints what would be done; returns whether nothing is known to fail."""
        total, done, todo, wrong = Work(), 0, 0, 0
        for task in tasks:
            work, states = self._of(task)
            counts = [sum(s.startswith(x) for s in states) for x in ("done", "to do", "refused")]
            done, todo, wrong = (a + b for a, b in zip((done, todo, wrong), counts, strict=True))
            total += work
            cost = f": {work}" if counts[1] else ""
            print(f"{task.video}: {counts[0]} done, {counts[1]} to do{cost}")
            for edit, state in zip(task.edits, states, strict=True):
                name, _, why = state.partition(": ")
                print(f"  {name:<7} {edit.output}{why and f': {why}'}")
        refused = f", {wrong} refused" if wrong else ""
        print(f"{len(tasks)} clips: {done} edits done, {todo} to do{refused}: {total}")
        return not wrong

    def _of(self, task: Task) -> tuple[Work, list[str]]:
        """What the edits of a clip cost that would be made, and what would become of each edit."""
        states = [self._state(task, i) for i in range(len(task.edits))]
        work, inverted = Work(), set[str]()
        todo = [i for i, state in enumerate(states) if state == "to do"]
        groups = self._edits.groups(task) if todo else {}
        for i in todo:
            key, _ = groups[i]
            try:
                work += self._cost(self._edits.parse(task, task.edits[i]), key in inverted)
                inverted.add(key)
            except Exception as error:
                states[i] = f"refused: {self._edits.explain(error)}"
        return work, states

    def _state(self, task: Task, index: int) -> str:
        edit = task.edits[index]
        try:
            if self._edits.is_done(edit, self._edits.key(task, edit)):
                return "done"
        except Exception as error:
            return f"refused: {self._edits.explain(error)}"
        there = self._edits.is_there(edit) and not self._force
        return f"refused: {OTHERWISE}" if there else "to do"

    def _cost(self, args: argparse.Namespace, inverted: bool) -> Work:
        """The cost of one edit. inverted: the inversion of its clip is counted already."""
        from anyv2v.pipeline import cost  # imports what nothing else needs

        clip = typed(Clip, args)
        window = getattr(args, "window", 0)
        video, windows = (clip.read(), 1) if clip.is_source else one_window(args, clip)
        method, steps = settings.of_the_inversion(args)
        given = {
            **settings.of_the_run(args),
            "guidance": args.guidance,
            "method": method,
            "inversion_steps": steps,
            "feature_memory": args.feature_memory if hasattr(args, "feature_memory") else None,
            "evaluations": 0 if clip.is_source else None,
        }
        known = repr([typed(Model, args), video.frames.shape, windows, window, given])
        if known not in self._known:
            found = cost.predict_cost(editor_of(args), video, **given)
            inversion, sampling = found.inversion_evaluations, found.sampling_branches
            self._known[known] = Work(windows * inversion, windows * sampling, found.peak)
        work = self._known[known]
        return replace(work, inversion=0) if inverted else work
