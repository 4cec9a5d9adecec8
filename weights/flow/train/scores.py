"""Scores of a model's edits of validation scenes, whose true edits are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from anyv2v.backbones.defaults import read_defaults
from anyv2v.backbones.wan.backbone import Wan
from anyv2v.editor import Editor
from anyv2v.injection.fractions import Injection
from anyv2v.media.frames import Video
from anyv2v.media.psnr import psnr
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.demo.scenes import KINDS, draw_edit
from anyv2v.weights.demo.scores import Truth, trajectory_error

STEPS = 25
"""Steps of inversion and sampling: half of the default, as this is done again and again."""


def load(folder: Path) -> Editor:
    """Loads a weights folder of `wan` into an editor, in float32 on the CPU.

    Its inversions allow any norm of the noise, as that of weights that know little is wrong.
    """
    saved = Checkpoint.open(folder)
    builders = Wan.networks(saved.config)
    networks = {name: saved.load(name, build) for name, build in builders.items()}
    defaults = read_defaults(saved.config, Wan.published_settings)
    defaults = replace(defaults, noise_range=())
    return Editor(Wan.assemble(saved.config, networks, folder, defaults))


def score(folder: Path, scenes: Iterable[int], path: Path) -> None:
    """Edits validation scenes with the model in `folder`, and adds a line of means to `path`.

    Scene i is edited in the i-th way of `KINDS` in turn. The means are over all scenes and, as
    KIND/NAME, over those of one kind; see `scores_of`.
    """
    editor, found = load(folder), {}
    for i in scenes:
        kind = KINDS[i % len(KINDS)]
        for name, value in scores_of(editor, kind, i).items():
            if not math.isnan(value):
                for key in (name, f"{kind}/{name}"):
                    found.setdefault(key, []).append(value)
    line = progress_of(folder) | {
        name: round(float(np.mean(values)), 3) for name, values in found.items()
    }
    print(json.dumps(line), flush=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def progress_of(folder: Path) -> dict:
    """Returns how far the training of a weights folder is, {} if nothing beside it says so."""
    path = folder.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def scores_of(editor: Editor, kind: str, index: int) -> dict[str, float]:
    """Returns the scores of one validation scene; frame 0 counts in none of them.

    autoencoder, reconstruction: PSNR in dB of the source, encoded and decoded, and sampled again
    from its inversion; without offsets: the latter without what the inversion kept of the steps
    that it did not solve. norm: of the noise that the inversion found; 1 is that of random noise.
    edit, inverted, random, static: PSNR to the true edit of the edit with the weights' own
    injection, without injection, from random noise, and of the first frame alone. trajectory,
    random trajectory: how far the shape is from its true place, in pixels.
    """
    size, frames = editor.defaults.size, editor.defaults.frames
    edit = draw_edit(kind, "validation", index)
    truth = Truth.of(edit, size, frames)
    first, caption = truth.frames[0], edit.truth.caption
    video = Video(truth.source, editor.defaults.fps)
    source = editor.invert(video, steps=STEPS, prompt=edit.source.caption)
    again, without = (
        editor.reconstruct(each, edit.source.caption, steps=STEPS).frames
        for each in (source, replace(source, offsets={}))
    )
    clips = {
        "edit": editor.edit(source, first, caption, steps=STEPS).frames,
        "inverted": editor.edit(
            source, first, caption, steps=STEPS, injection=Injection.none()
        ).frames,
        "random": editor.generate(first, caption, steps=STEPS, seed=index).frames,
        "static": np.repeat(truth.frames[:1], frames, axis=0),
    }
    passed = editor.decode(editor.encode_frames(truth.source))
    return {
        "autoencoder": psnr(passed[1:], truth.source[1:]),
        "reconstruction": psnr(again[1:], truth.source[1:]),
        "without offsets": psnr(without[1:], truth.source[1:]),
        "norm": source.noise_norm,
        **{name: psnr(clip[1:], truth.frames[1:]) for name, clip in clips.items()},
        "trajectory": trajectory_error(clips["edit"], truth),
        "random trajectory": trajectory_error(clips["random"], truth),
    }
