"""What a comparison makes: a cell for each edit, editor of the first frame, and method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.comparison.benchmark import BenchmarkClip, BenchmarkEdit
from anyv2v.comparison.methods import FRAMES, AnyV2V, Baseline, FrameSource, Method, Tool

INPUTS, OUTPUTS = "inputs", "outputs"
"""Folders, in that of the comparison, of what all methods get and of what they make."""
PICTURE = "%05d.png"
"""Names of the pictures of clips: all clips of a comparison are PNG files, without loss."""
FRAME_EDIT, METHOD = "edit-frame", "method"
"""Commands of what is made here; the others are those of `anyv2v edit`."""


@dataclass(frozen=True)
class Cell:
    """One output of a comparison."""

    edit: BenchmarkEdit
    """What is wanted of which clip."""
    frame: FrameSource
    """Where the edited first frame comes from."""
    method: Method
    """How it is carried through the clip."""

    @property
    def path(self) -> str:
        """Path of the edited clip below the folder of the comparison, a pattern of pictures."""
        names = self.edit.clip, self.edit.name, self.frame.name, self.method.name
        return "/".join((OUTPUTS, *names, PICTURE))


@dataclass(frozen=True)
class Layout:
    """The paths below the folder of a comparison."""

    folder: Path
    """The folder of the comparison."""

    def clip(self, clip: str) -> Path:
        """The clip as all methods get it, a folder of pictures."""
        return self.folder / INPUTS / clip / "clip"

    def truth(self, edit: BenchmarkEdit) -> Path:
        """The true edited clip in the same form, a folder of pictures."""
        return self.folder / INPUTS / edit.clip / edit.name / "truth"

    def mask(self, edit: BenchmarkEdit) -> Path:
        """The mask of the edit at the size of the clip."""
        return self.folder / INPUTS / edit.clip / edit.name / "mask.png"

    def frame(self, edit: BenchmarkEdit, source: FrameSource) -> Path:
        """The edited first frame at the size of the clip."""
        return self.folder / frame_path(edit, source)

    def output(self, cell: Cell) -> Path:
        """The edited clip, a folder of pictures."""
        return (self.folder / cell.path).parent


def frame_path(edit: BenchmarkEdit, source: FrameSource) -> str:
    """Path of an edited first frame below the folder of the comparison."""
    return "/".join((INPUTS, edit.clip, edit.name, f"{source.name}.png"))


@dataclass(frozen=True)
class Comparison:
    """Clips, editors of the first frame and methods that are compared; the first ones are bases.

    Differences are to the base method with the same first frame, and to the base editor with the
    same method.
    """

    clips: Sequence[BenchmarkClip]
    """The clips with their edits."""
    frames: Sequence[FrameSource]
    """The editors of the first frame, at least one."""
    methods: Sequence[Method]
    """The methods, at least one."""
    star: bool = False
    """Only the base editor with every method, and every editor with the base method."""

    def pairs(self) -> list[tuple[FrameSource, Method]]:
        """Returns which editors are compared with which methods, in the order of the table."""
        return [
            (frame, method)
            for i, frame in enumerate(self.frames)
            for j, method in enumerate(self.methods)
            if not (self.star and i and j)
        ]

    def edits(self) -> Iterator[BenchmarkEdit]:
        """Yields the edits of all clips."""
        for clip in self.clips:
            yield from clip.edits

    def cells(self, clip: BenchmarkClip | None = None) -> Iterator[Cell]:
        """Yields the cells of a clip, or of all, whose first frame can be had."""
        for each in self.clips if clip is None else [clip]:
            for edit in each.edits:
                for frame, method in self.pairs():
                    if lacks(edit, frame) is None:
                        yield Cell(edit, frame, method)

    def gaps(self) -> list[str]:
        """Returns a line for each edit that an editor cannot make, with what the edit lacks."""
        return [
            f"{edit.clip}/{edit.name}: has no {lack}, which the editor {frame.name} needs"
            for edit in self.edits()
            for frame in self.frames
            if (lack := lacks(edit, frame)) is not None
        ]


def lacks(edit: BenchmarkEdit, frame: FrameSource) -> str | None:
    """Returns what an edit lacks for an editor of the first frame, None if it has all."""
    texts = {"instruction": instruction(edit, frame)}
    files = {name: getattr(edit, name) for name in ("frame", "truth", "reference", "mask")}
    return frame.missing(texts | files)


def frame_tasks(comparison: Comparison, layout: Layout, seed: int) -> list[Task]:
    """Returns the first frames that editors make, as a task for each clip that has any."""

    def edits(clip: BenchmarkClip) -> Iterator[TaskEdit]:
        for edit in clip.edits:
            for frame in comparison.frames:
                if frame.editor not in FRAMES and lacks(edit, frame) is None:
                    settings = {
                        "editor": frame.editor,
                        "options": dict(frame.options),
                        "instruction": instruction(edit, frame),
                        "reference": _text(edit.reference),
                        "mask": _text(edit.mask and layout.mask(edit)),
                        "seed": seed,
                    }
                    yield TaskEdit(frame_path(edit, frame), settings, FRAME_EDIT)

    return _tasks(comparison, layout, edits)


def edit_tasks(
    comparison: Comparison, layout: Layout, shared: Mapping[str, Mapping[str, Any]]
) -> list[Task]:
    """Returns the cells of `anyv2v edit`, as a task for each clip that has any.

    shared: clip -> options of all its edits; those of a method count before them. The caption of
    the clip is the prompt of the inversion, unless the method is that of the paper or has one.
    """

    def edits(clip: BenchmarkClip) -> Iterator[TaskEdit]:
        for cell in comparison.cells(clip):
            if isinstance(cell.method, AnyV2V):
                own = dict(cell.method.settings)
                if clip.caption and not own.get("paper"):
                    own.setdefault("inversion_prompt", clip.caption)
                own["frame"] = str(layout.frame(cell.edit, cell.frame))
                yield TaskEdit(cell.path, own | {"prompt": cell.edit.prompt})

    return _tasks(comparison, layout, edits, shared)


def method_tasks(
    comparison: Comparison, layout: Layout, rates: Mapping[str, float], seed: int
) -> list[Task]:
    """Returns the cells of baselines and of other tools, as a task for each clip that has any.

    rates: clip -> its frames per second.
    """

    def edits(clip: BenchmarkClip) -> Iterator[TaskEdit]:
        for cell in comparison.cells(clip):
            frame = str(layout.frame(cell.edit, cell.frame))
            if isinstance(cell.method, Baseline):
                yield TaskEdit(cell.path, {"baseline": cell.method.name, "frame": frame}, METHOD)
            elif isinstance(cell.method, Tool):
                settings = {
                    "tool": cell.method.command,
                    "frame": frame,
                    "prompt": cell.edit.prompt,
                    "instruction": instruction(cell.edit, cell.frame),
                    "mask": _text(cell.edit.mask and layout.mask(cell.edit)),
                    "seed": seed,
                    "fps": rates[clip.name],
                }
                yield TaskEdit(cell.path, settings, METHOD)

    return _tasks(comparison, layout, edits)


def instruction(edit: BenchmarkEdit, frame: FrameSource) -> str:
    """Returns what an editor is told: by its own name here, else by that of the editor it is."""
    return edit.instructions.get(frame.name) or edit.instruction(frame.editor)


def _tasks(
    comparison: Comparison,
    layout: Layout,
    edits: Callable[[BenchmarkClip], Iterator[TaskEdit]],
    shared: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Task]:
    made = {clip.name: tuple(edits(clip)) for clip in comparison.clips}
    return [
        Task(str(layout.clip(name)), found, (shared or {}).get(name, {}))
        for name, found in made.items()
        if found
    ]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
