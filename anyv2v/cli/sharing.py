"""What the edits of a batch share in one process: the networks, and the inversion of their clip."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import is_source
from anyv2v.cli.model import Model
from anyv2v.cli.values import SOURCE
from anyv2v.diffusion.schedule import match_levels
from anyv2v.editor import Editor
from anyv2v.injection.fractions import Injection
from anyv2v.pipeline.source import Source, Unfinished

READ = ("video", "weights", "size", "frames", "sample_fps", "start_time", "fit")
READ += ("dtype", "inversion_prompt", "tolerance", "feature_memory")
"""Options on which the inversion of a clip depends, besides its method, steps and end."""


class Shared:
    """Keeps the networks that were loaded last, and the clip that was inverted last.

    A batch runs its edits one after the other, each as `anyv2v edit` would, and gives all of them
    the same `Shared`. Before each of them it says by `begin` with which others that one shares its
    inversion.
    """

    def __init__(self):
        self._loaded: tuple[Model, Editor] | None = None
        self._source: tuple[str, Source] | None = None
        self._key = ""
        self.unfinished: Path | None = None
        """The file in which the state of the inversion is saved; for a clip of several windows the
        beginning of the names of such files."""
        self.alike: Sequence[argparse.Namespace] = ()
        """All commands that share the inversion, whether they have run already or not: they decide
        together what of the inversion is kept, so that it is the same whichever of them run."""

    def begin(self, key: str, alike: Sequence[argparse.Namespace], unfinished: Path) -> None:
        """Says what the next command shares.

        key: what the inversion depends on, as a text; one with another key is dropped. alike: see
        the attribute. unfinished: the file in which the state of the inversion is saved.
        """
        if self._source is not None and self._source[0] != key:
            self.drop()
        self._key, self.alike, self.unfinished = key, alike, unfinished

    def drop(self) -> None:
        """Frees the inverted clip."""
        self._source = None

    def editor(self, model: Model) -> Editor:
        """Returns the editor that the options choose, which is loaded if it was not the last."""
        if self._loaded is None or self._loaded[0] != model:
            self.drop()
            self._loaded = None  # before others are loaded: memory may not hold both
            self._loaded = model, model.load()
        return self._loaded[1]

    def source(self, obtain: Callable[[Unfinished | None], Source]) -> Source:
        """Returns the inverted clip, which `obtain` makes if no earlier command has.

        obtain: called with the file of the unfinished inversion, from which it goes on.
        """
        if self._source is None:
            kept = self.unfinished
            unfinished = None if kept is None else Unfinished(kept, keep=True)
            self._source = self._key, obtain(unfinished)
        return self._source[1]


def editor_of(args: argparse.Namespace) -> Editor:
    """Returns the editor of a command: that of the batch, or one of its own."""
    model = typed(Model, args)
    return model.load() if args.sharing is None else args.sharing.editor(model)


def alike(args: argparse.Namespace) -> Sequence[argparse.Namespace]:
    """Returns the commands that share the inversion of this one, itself among them."""
    return [args] if args.sharing is None else args.sharing.alike


def widest(injections: Sequence[Injection]) -> Injection:
    """Returns the injection that injects wherever one of these does; they choose no own sites."""
    names = dict.fromkeys(name for each in injections for name in each.fractions)
    fractions: Any = {n: max(x.fractions.get(n, 0.0) for x in injections) for n in names}
    return Injection(**fractions)


def inversion_key(args: argparse.Namespace, load: Callable[[], Editor]) -> str:
    """Returns a text of all that the inversion of a command's clip depends on.

    args: the options, after `settings.fill`. load: returns the editor.
    """
    if is_source(args.video):
        return f"{args.video} {args.weights}"
    method, steps = settings.of_the_inversion(args)
    editor, end = load(), None
    plan = editor.step_plan(**settings.of_the_run(args))
    if method == "fixed-point":
        # where an inversion ends, it is solved more exactly
        end = min(match_levels(plan.source_levels, editor.schedule.levels(steps)).values())
    told = [getattr(args, name, None) for name in READ]
    whole = getattr(args, "out_size", None) == SOURCE
    return repr([*told, whole, method, steps, end, sorted(args.options.items())])
