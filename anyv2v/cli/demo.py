"""`anyv2v demo`: renders a clip, edits it, and compares the edit with the rendered truth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import wrap

import numpy as np

from anyv2v.cli.arguments import typed
from anyv2v.cli.console import tell
from anyv2v.cli.demo_pictures import Texts, enlarged, moving, sheet, write_gif
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import made_folder
from anyv2v.cli.sidecar import Provenance, check_sidecar, with_sidecar
from anyv2v.cli.source import progress_of, without_effect
from anyv2v.editor import Editor
from anyv2v.injection.fractions import NO_INJECTION, Injection
from anyv2v.media.frames import Video
from anyv2v.media.video import pyav, write_video
from anyv2v.pipeline.request import Edit
from anyv2v.protection.protect import protect
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import BEST_FIRST, CLEAR, draw_edit
from anyv2v.weights.demo.scores import Truth, scores

EDITED = "edited.mp4"
FILES = (
    "source.mp4",
    "truth.mp4",
    EDITED,
    "side-by-side.mp4",
    "sheet.png",
    "baselines.png",
    "demo.gif",
    "scores.json",
)
"""Names of the files that the demo writes, besides a sidecar."""
SHOWN = 256
"""The least length in pixels of a clip's shorter side: the demo model's pictures are small, and are
enlarged to it."""
NAMES = {
    "edit": "what anyv2v edit makes",
    "unprotected": "with --protect off",
    "static": "the edited frame held still",
    "random": "sampling without the source",
    "latents_only": "sampling without injection",
    "unedited": "the unedited source",
    "autoencoder": "the truth through the autoencoder",
}
"""Clip that is scored -> what it is, in words."""
BASELINES = ("static", "random", "latents_only", "unedited")
"""The clips that the edit has to be closer to the truth than."""
HARDLY = 0.75
"""An edit has done little if it is off from the truth by this share of what the source is, or more.
"""
FIRST = 10**6
"""Index of the demo's first scene among the held-out ones; the benchmark takes those from 0 on."""


def run_demo(args: argparse.Namespace) -> None:
    """Runs `anyv2v demo`: renders and edits a clip, writes `FILES` and prints the scores.

    Makes the output folder if it is missing. Raises InputError if it cannot be made or written to.
    """
    pyav()
    folder = made_folder(args.output, FILES, args.force)
    check_sidecar(folder / EDITED, args.force)
    provenance = Provenance.begin(args)
    editor = typed(Model, args).load()
    tell(without_effect(args))
    with progress_of(args) as progress:
        results = run(editor, folder, args.kind, args.seed, progress)
    with with_sidecar(folder / EDITED, provenance.of(editor)):
        pass  # the clips are there; which kernels made them is known now
    print(verdict(results))
    print()
    for name, values in results.items():
        print(f"{name:13} {values['psnr']:6.2f} dB  {NAMES[name]}")
    print()
    print(f"{folder}: {', '.join(FILES)}")


def run(
    editor: Editor,
    folder: Path,
    kind: str = BEST_FIRST[0],
    seed: int = CLEAR,
    progress: Callable[[str, int], Callable | None] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Renders, inverts and edits a clip; writes `FILES` to `folder`; returns the scores.

    The result is clip -> metric -> score, None for NaN; the clips are those of `NAMES`, without
    "unprotected" if the weights do not protect by default. kind: one of `BEST_FIRST`.
    progress(title, steps) begins a stage; its result, if not None, is called after each step.
    """
    size, frames, fps = editor.defaults.size, editor.defaults.frames, editor.defaults.fps
    wanted = draw_edit(kind, "held-out", FIRST + seed)
    truth = Truth.of(wanted, size, frames)
    captions = wanted.source.caption, wanted.truth.caption
    clips = made_clips(editor, truth, captions, seed, progress or (lambda title, steps: None))
    found = {name: scores(clip, truth) for name, clip in clips.items()}
    # JSON has no NaN
    found = {n: {k: None if v != v else v for k, v in s.items()} for n, s in found.items()}
    write_clips(folder, truth, clips["edit"], fps)
    write_pictures(folder, truth, clips, found, fps)
    with atomic_path(folder / FILES[-1]) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def made_clips(
    editor: Editor,
    truth: Truth,
    captions: tuple[str, str],
    seed: int,
    track: Callable[[str, int], Callable | None],
) -> dict[str, np.ndarray]:
    """Inverts the source of `truth`, edits it, and returns the clips of `NAMES`, in this order.

    captions: those of the source and of the truth. "edit" is what `anyv2v edit` makes by default
    with the source's caption as --inversion-prompt, so it is protected where the weights say so.
    """
    video, steps = Video(truth.source, editor.defaults.fps), editor.defaults.steps
    inverted = editor.invert(
        video,
        prompt=captions[0],
        on_step=track("invert", steps),
        recording=editor.recording(video),
    )

    def edit(title: str, injection: Injection | None = None, random_ratio: float = 0.0) -> Edit:
        return editor.edit(
            inverted,
            truth.frames[0],
            captions[1],
            injection=injection,
            random_ratio=random_ratio,
            seed=seed,
            on_step=track(title, steps),
        )

    made = edit("edit")
    clips = {"edit": made.frames}
    if editor.defaults.protect:
        clips = {"edit": protect(made, inverted).frames, "unprotected": made.frames}
    return clips | {
        "static": np.repeat(truth.frames[:1], len(truth.frames), axis=0),
        "random": edit("from random noise", NO_INJECTION, random_ratio=1.0).frames,
        "latents_only": edit("without injection", NO_INJECTION).frames,
        "unedited": truth.source,
        "autoencoder": np.asarray(editor.decode(editor.encode_frames(truth.frames))),
    }


def verdict(results: Mapping[str, Mapping[str, float | None]]) -> str:
    """Returns one sentence on how good an edit is, for readers who know no metric.

    results: clip -> metric -> score, as `run` returns it. Clips are compared by the share of a
    color's range by which they are off from the truth, in the root mean square, as it is printed.
    """
    off = {name: round(100 * 10 ** (-(s["psnr"] or 0.0) / 20), 1) for name, s in results.items()}
    edit, best = off["edit"], min(BASELINES, key=off.__getitem__)
    if off[best] < edit:
        said = f"is farther from the truth than {NAMES[best]}"
    elif off[best] == edit:
        said = f"is as far from the truth as {NAMES[best]}"
    elif edit >= HARDLY * off["unedited"]:
        said = "is hardly closer to the truth than the unedited source"
    else:
        said = "is closer to the truth than all that it is compared with"
    others = [f"{NAMES[name]} by {off[name]:.1f} %" for name in BASELINES]
    return (
        f"The edit {said}: its colors are off by {edit:.1f} % of their range (root mean square), "
        f"{', '.join(others[:-1])} and {others[-1]}; the autoencoder alone costs "
        f"{off['autoencoder']:.1f} %."
    )


def write_clips(folder: Path, truth: Truth, edit: np.ndarray, fps: float) -> None:
    """Writes the four clips among `FILES` to `folder`, enlarged."""
    source, made, true = (enlarged(clip, SHOWN) for clip in (truth.source, edit, truth.frames))
    side_by_side = np.concatenate([source, made, true], axis=2)
    for name, clip in zip(FILES, (source, true, made, side_by_side), strict=False):
        write_video(folder / name, clip, fps)


def write_pictures(
    folder: Path,
    truth: Truth,
    clips: Mapping[str, np.ndarray],
    found: Mapping[str, Mapping[str, float | None]],
    fps: float,
) -> None:
    """Writes the pictures among `FILES` to `folder`; found: the scores of the clips."""
    shown: dict[Texts, np.ndarray] = {
        ("source", "the clip"): truth.source,
        ("edit", "by anyv2v"): clips["edit"],
        ("truth", "rendered"): truth.frames,
    }
    compared: dict[Texts, np.ndarray] = {("truth", "rendered"): truth.frames}
    for name, clip in clips.items():
        words = name, *wrap(NAMES[name], 20), f"{found[name]['psnr']:.1f} dB"
        compared[words] = clip
    for name, rows in (("sheet.png", shown), ("baselines.png", compared)):
        with atomic_path(folder / name) as temporary:
            sheet(rows, fps).save(temporary, "PNG", optimize=True)
    with atomic_path(folder / "demo.gif") as temporary:
        write_gif(temporary, moving(shown), fps)
