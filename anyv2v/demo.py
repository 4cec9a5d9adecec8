"""`anyv2v demo`: a whole edit of a clip that is rendered here, judged against its truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from anyv2v.editor import Editor
from anyv2v.files import atomic_path
from anyv2v.injection.plan import NO_INJECTION, Injection
from anyv2v.media.clip import Video
from anyv2v.media.psnr import psnr
from anyv2v.media.video import write_video
from anyv2v.weights.demo.scene import COLOURS, draw_scene, render

FILES = (
    "source.mp4",
    "truth.mp4",
    "edited.mp4",
    "side-by-side.mp4",
    "sheet.png",
    "scores.json",
)
STEPS, INVERSION_STEPS = 10, 50


def run(
    editor: Editor, folder: Path, seed: int = 0, progress: Callable[[str, int], Callable] = None
) -> dict[str, dict[str, float]]:
    """Renders, inverts and edits a clip, writes FILES into an existing folder; gives the scores.

    progress(title, steps) gives what is called after every step.
    """
    progress = progress or (lambda title, steps: None)
    size, frames, fps = editor.defaults.size, editor.defaults.frames, editor.defaults.fps
    scene = draw_scene(seed)
    colours = sorted(set(COLOURS) - {scene.colour})
    wanted = replace(scene, colour=colours[seed % len(colours)])
    source, truth = render(scene, size, frames), render(wanted, size, frames)

    inverted = editor.invert(
        Video(source, fps),
        steps=INVERSION_STEPS,
        fps=fps,
        on_step=progress("invert", INVERSION_STEPS),
    )

    def edit(title: str, injection: Injection, random_ratio: float = 0.0):
        return editor.edit(
            inverted,
            truth[0],
            wanted.caption,
            steps=STEPS,
            injection=injection,
            random_ratio=random_ratio,
            fps=fps,
            seed=seed,
            on_step=progress(title, STEPS),
        ).frames

    clips = {
        "edit": edit("edit", Injection()),
        "static": np.repeat(truth[:1], frames, axis=0),
        "random": edit("from random noise", NO_INJECTION, random_ratio=1.0),
        "latents_only": edit("without injection", NO_INJECTION),
    }
    scores = {name: {"psnr": psnr(clip[1:], truth[1:])} for name, clip in clips.items()}

    edited = clips["edit"]
    beside = np.concatenate([source, truth, edited], axis=2)
    named = zip(FILES[:4], (source, truth, edited, beside), strict=True)
    for name, clip in named:
        write_video(folder / name, clip, fps)
    with atomic_path(folder / "sheet.png") as temporary:
        rows = [np.concatenate(list(clip), axis=1) for clip in (source, truth, edited)]
        Image.fromarray(np.concatenate(rows)).save(temporary)
    with atomic_path(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores
