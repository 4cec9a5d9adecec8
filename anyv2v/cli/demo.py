"""`anyv2v demo`: renders a clip, edits it, and compares the edit with the rendered truth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from anyv2v.cli.arguments import typed
from anyv2v.cli.console import tell
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import made_folder
from anyv2v.cli.sidecar import Provenance, check_sidecar, with_sidecar
from anyv2v.cli.source import progress_of, without_effect
from anyv2v.editor import Editor
from anyv2v.injection.fractions import NO_INJECTION, Injection
from anyv2v.media.frames import Video
from anyv2v.media.video import pyav, write_video
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth, scores

EDITED = "edited.mp4"
FILES = (
    "source.mp4",
    "truth.mp4",
    EDITED,
    "side-by-side.mp4",
    "sheet.png",
    "scores.json",
)
"""Names of the files that the demo writes, besides a sidecar."""
SHOWN = 256
"""The least length in pixels of a picture's shorter side: the demo model's pictures are small, and
are enlarged to it."""

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
    for name, values in results.items():
        print(f"{name:13} PSNR to the truth {values['psnr']:.2f} dB")
    print(f"{folder}: {', '.join(FILES)}")


def run(
    editor: Editor,
    folder: Path,
    kind: str = "colour",
    seed: int = 0,
    progress: Callable[[str, int], Callable | None] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Renders, inverts and edits a clip; writes `FILES` to `folder`; returns the scores.

    The result is clip -> metric -> score, None for NaN. kind: one of `KINDS` in scenes.py.
    progress(title, steps) begins a stage; its result, if not None, is called after each step.
    """
    track = progress or (lambda title, steps: None)
    size, frames, fps = editor.defaults.size, editor.defaults.frames, editor.defaults.fps
    wanted = draw_edit(kind, "held-out", FIRST + seed)
    truth = Truth.of(wanted, size, frames)
    steps = editor.defaults.steps

    video = Video(truth.source, fps)
    inverted = editor.invert(
        video,
        prompt=wanted.source.caption,
        on_step=track("invert", steps),
        recording=editor.recording(video),
    )

    def edit(title: str, injection: Injection | None = None, random_ratio: float = 0.0):
        return editor.edit(
            inverted,
            truth.frames[0],
            wanted.truth.caption,
            injection=injection,
            random_ratio=random_ratio,
            seed=seed,
            on_step=track(title, steps),
        ).frames

    clips = {
        "edit": edit("edit"),
        "static": np.repeat(truth.frames[:1], frames, axis=0),
        "random": edit("from random noise", NO_INJECTION, random_ratio=1.0),
        "latents_only": edit("without injection", NO_INJECTION),
        "unedited": truth.source,
    }
    found = {name: scores(clip, truth) for name, clip in clips.items()}
    # JSON has no NaN
    found = {n: {k: None if v != v else v for k, v in s.items()} for n, s in found.items()}

    edited = clips["edit"]
    side_by_side = np.concatenate([truth.source, truth.frames, edited], axis=2)
    named = zip(FILES[:4], (truth.source, truth.frames, edited, side_by_side), strict=True)
    for name, clip in named:
        write_video(folder / name, enlarged(clip, size), fps)
    with atomic_path(folder / "sheet.png") as temporary:
        rows = (truth.source, truth.frames, *clips.values())
        picture = np.concatenate([np.concatenate(list(clip), axis=1) for clip in rows])
        Image.fromarray(enlarged(picture[None], size, SHOWN // 3)[0]).save(temporary)
    with atomic_path(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def enlarged(pictures: np.ndarray, size: tuple[int, int], shown: int = SHOWN) -> np.ndarray:
    """Returns pictures (n, h, w, 3) enlarged by repeating pixels, a whole number of times.

    size: (width, height) of the pictures. shown: the least length of a side in the result, in
    pixels.
    """
    times = max(1, -(-shown // min(size)))
    return pictures.repeat(times, axis=1).repeat(times, axis=2)
