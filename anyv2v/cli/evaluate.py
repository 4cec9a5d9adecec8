"""`anyv2v evaluate`: the scores of edited clips, in a table, in files, and on a page."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from anyv2v import loading
from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import is_source, size_of
from anyv2v.cli.console import tell
from anyv2v.cli.edit import SomeFailed
from anyv2v.cli.evidence import DEMO, Evidence, find_outputs
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import made_folder
from anyv2v.cli.source import progress_of, without_effect
from anyv2v.clip.model import CLIPModel
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.evaluation import clip_model, network, report
from anyv2v.evaluation.case import Case
from anyv2v.evaluation.clip_scores import clip_scores
from anyv2v.evaluation.network import Run
from anyv2v.evaluation.plot import plot
from anyv2v.evaluation.report import Judged
from anyv2v.evaluation.scores import HIGHER, Score, scores
from anyv2v.evaluation.sheet import Shown
from anyv2v.media.frames import Video
from anyv2v.metrics import lpips
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.runtime.progress import Progress

FILES = ("scores.json", "scores.csv", "index.html")
"""Names of the files that `-o DIR` gets."""
OF_ONE = ("source", "truth", "frame", "prompt", "mask")
"""Options that belong to one clip, and not to a folder of them."""


def run_evaluate(args: argparse.Namespace) -> None:
    """Runs `anyv2v evaluate`: prints the scores of OUT, and writes `FILES` if `-o` is given.

    Of a folder, a clip that cannot be scored does not stop the others. Raises `SomeFailed` at the
    end if there was one.
    """
    outputs, whole = find_outputs(args.out)
    given = [name for name in OF_ONE if getattr(args, name) is not None]
    if whole and given:
        raise InputError(f"--{given[0]} belongs to one clip; {args.out} holds {len(outputs)}")
    folder = made_folder(args.output, FILES, args.force) if args.output is not None else None
    tell(without_effect(args))
    judged: dict[str, Judged] = {}
    failures: dict[str, Exception] = {}
    with progress_of(args) as progress:
        judge = Judge(args, progress)
        step = progress("evaluate", len(outputs))
        for name, path in outputs.items():
            try:
                judged[name] = judge.judge(Evidence.of(args, path))
            except InputError as error:
                if not whole:
                    raise
                failures[name] = error
            step()
    _print(judged, whole, each=folder is None)
    if folder is not None and judged:
        texts = (
            report.as_json(judged, whole),
            report.as_csv(judged),
            report.as_page(f"anyv2v evaluate {args.out}", judged, whole),
        )
        for file, text in zip(FILES, texts, strict=True):
            with atomic_path(folder / file) as temporary:
                # a name may hold bytes that are no text; CSV has its own ends of lines
                temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        print(f"{folder}: {', '.join(FILES)}")
    if failures:
        raise SomeFailed(failures)


def _print(judged: dict[str, Judged], whole: bool, each: bool) -> None:
    """Prints the scores: of one clip, or of a folder the means, after those of each if asked."""
    for name, found in judged.items():
        if not whole:
            print(report.as_text(found.scores))
        elif each:
            print(f"{name}\n{report.as_text(found.scores)}\n")
    if whole and judged:
        print(f"means of {len(judged)} clips\n{report.means_as_text([*judged.values()])}")


class Judge:
    """Scores clips, and keeps what several of them share: networks, and round trips of a source."""

    def __init__(self, args: argparse.Namespace, progress: Progress):
        """Loads the CLIP and LPIPS if the options ask for them. Raises InputError if it cannot."""
        self._args, self._progress = args, progress
        self._model = typed(Model, args)
        self._clip = None
        if args.clip is not None:
            dtype = self._model.torch_dtype or torch.float32
            self._clip = clip_model.load(args.clip, self._model.torch_device, dtype)
        self._distance = lpips.load() if args.lpips else None
        self._editors: dict[str, Editor] = {}
        self._trips: dict[tuple, list[Score]] = {}

    def judge(self, known: Evidence) -> Judged:
        """Scores a clip. Raises InputError if it, or what an option names, cannot be read."""
        case, fps = known.read(known.size)
        rows = scores(case, self._distance)
        if self._clip is not None:
            rows += _by_clip(self._clip, case, known.prompt)
        notes, plots = [f"prompt: {known.prompt}"] if known.prompt else [], []
        shown = _shown(case, fps)
        if self._args.round_trip or self._args.checks:
            if known.network_size not in (None, size_of(case.edited[0])):
                case, fps = known.read(known.network_size)
            weights = self._weights(known)
            editor, run = self._editor(weights), run_of(known, weights)
            if self._args.round_trip:
                rows += self._round_trip(known, case, fps, editor, run)
            if self._args.checks:
                found, curves = network.checks(editor, case, run, self._progress)
                rows += found
                plots = [plot(title, lines, "frame", "RMS") for title, lines in curves.items()]
        return Judged(rows, shown, plots, notes)

    def _round_trip(
        self, known: Evidence, case: Case, fps: float, editor: Editor, run: Run
    ) -> list[Score]:
        """The scores of --round-trip, computed once for all edits of one source."""
        how = [getattr(known.made, name, None) for name in ("sample_fps", "start_time", "fit")]
        key = (editor.fingerprint, known.source, case.edited.shape, repr(run), *map(str, how))
        if known.source is None or key not in self._trips:

            def trip() -> list[Score]:
                video = Video(case.need("source"), fps)
                return network.round_trip(editor, video, run, "source", self._progress)

            self._trips[key] = network.tried(editor, run, "source", len(case.edited), trip)
        return self._trips[key]

    def _weights(self, known: Evidence) -> str:
        """The weights that are asked for, else those that made the clip, else the default."""
        if "weights" in self._args.given or known.made is None:
            return self._args.weights
        return known.made.weights

    def _editor(self, weights: str) -> Editor:
        """Loads weights, unless they are those of the clip before."""
        if weights not in self._editors:
            self._editors.clear()
            self._editors[weights] = replace(self._model, weights=weights).load()
        return self._editors[weights]


def run_of(known: Evidence, weights: str) -> Run:
    """Returns how a clip was inverted and sampled, as its sidecar says, else the weights' own."""
    made, peek = known.made, loading.peek(weights)
    if made is None or made.command == DEMO:
        return Run(frames=peek.defaults.frames if made is None else None)
    settings.fill(made, peek.defaults, peek.original, is_source(made.video))
    method, steps = settings.of_the_inversion(made)
    tolerance = None if method == "ddim" else made.tolerance
    # a source is one window, however long it is
    most = getattr(made, "window", None) or None
    prompt = made.inversion_prompt or ""
    return Run(method, steps, made.steps, prompt, tolerance, made.options, most)


def _by_clip(model: CLIPModel, case: Case, prompt: str | None) -> list[Score]:
    """The scores of a CLIP, and why there are not all of them."""
    frame = case.references.get(0)
    found = clip_scores(model, case.edited, prompt, frame)
    rows = [Score(name, value, "", HIGHER) for name, value in found.items()]
    missing = {}
    if prompt is None or model.text is None:
        why = "no prompt is known" if model.text is not None else "this CLIP has no text encoder"
        missing["clip_text"] = why
    if frame is None:
        missing["clip_image_frame"] = "no edited first frame is known"
    named = [(f"{name}[{model.name}]", reason) for name, reason in missing.items()]
    return rows + [Score(name, None, "", HIGHER, reason) for name, reason in named]


def _shown(case: Case, fps: float) -> list[Shown]:
    """The clips for the page, side by side, and the mask if there is one."""
    clips = {"source": case.source, "edit": case.edited, "truth": case.truth}
    shown = [Shown(name, clip, fps) for name, clip in clips.items() if clip is not None]
    if case.source is not None or case.mask is not None:
        gray = (case.masks * 255).astype(np.uint8)
        name = f"may change (white): {case.mask_name}"
        shown.append(Shown(name, np.repeat(gray[..., None], 3, axis=-1), fps))
    return shown
