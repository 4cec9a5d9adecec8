"""Other measurements on the rendered scenes: sites, conditions, and edited first frames."""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import numpy as np
import torch

import anyv2v
from anyv2v.editor import Editor
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import COLORS, KINDS, draw_edit, draw_scene
from anyv2v.weights.demo.scores import scores
from bench.edit_quality.rows import ORIGINAL, Case, with_original_sites
from bench.edit_quality.table import SCORES, interval


def sweep(editor: Editor, args: argparse.Namespace) -> None:
    """Compare sites and fractions of injection of the demo model on validation scenes."""
    up = sorted(s for s in editor.sites if s.startswith("up."))
    kinds_of_sites = {
        "conv": [s for s in up if ".res." in s],
        "spatial": [s for s in up if ".spatial." in s and s.endswith(".self")],
        "temporal": [s for s in up if ".temporal." in s and s.endswith(".self")],
    }
    off = {"conv": 0.0, "spatial": 0.0, "temporal": 0.0}
    candidates = {"none": NO_INJECTION, "original": with_original_sites(editor, ORIGINAL)}
    candidates["the model's own"] = ORIGINAL
    for kind, sites in kinds_of_sites.items():
        for site in sites:
            for part in args.parts:
                chosen = anyv2v.Injection(**{**off, kind: part}, sites={kind: [site]})
                candidates[f"{site} {part}"] = chosen
    found: dict[str, dict[str, list]] = {name: {} for name in candidates}
    for i in range(args.first, args.first + args.scenes):
        kind = KINDS[i % len(KINDS)]
        edit = draw_edit(kind, "validation", i)
        case = Case(editor, edit, args.frames)
        for name, injection in candidates.items():
            clip = case.sample(injection).frames
            found[name].setdefault(kind, []).append(scores(clip, case.truth))
    for score in ("psnr", "trajectory", "iou"):
        print(f"\n{score:34}" + "".join(f"{kind:>11}" for kind in found["none"]) + f"{'all':>11}")
        for name, kinds in found.items():
            means = [np.nanmean([s[score] for s in each]) for each in kinds.values()]
            cells = "".join(f"{mean:11.2f}" for mean in [*means, np.mean(means)])
            print(f"{name:34}{cells}", flush=True)


def first_frames(editor: Editor, args: argparse.Namespace) -> None:
    """Compare edits from an edited first frame with those from the rendered one, on color edits."""
    options = dict(text.split("=", 1) for text in args.editor_option)
    found: dict[str, list] = {"source": [], "edited": [], "rendered": []}
    # the color edits among the scenes that are judged without this option; sepia has no red
    numbers = range(args.first, sys.maxsize, len(KINDS))
    edits = ((i, draw_edit("colour", "held-out", i)) for i in numbers)
    natural = ((i, edit) for i, edit in edits if edit.source.style == "natural")
    for i, edit in islice(natural, args.scenes):
        case = Case(editor, edit, args.frames)
        truth = case.truth
        sprites = edit.source.sprites[edit.sprite], edit.truth.sprites[edit.sprite]
        instruction = " > ".join(_hex(COLORS[sprite.color]) for sprite in sprites)
        frames = {
            "source": truth.source[0],
            "edited": anyv2v.edit_frame(truth.source[0], args.editor, instruction, **options),
            "rendered": truth.frames[0],
        }
        for name, frame in frames.items():
            clip = truth.source if name == "source" else case.sample(frame=frame).frames
            values = {"first": psnr(frame, truth.frames[0])} | scores(clip, truth)
            found[name].append(values)
        now = {name: rows[-1] for name, rows in found.items()}
        print(
            f"scene {i}, {instruction}: first frame {now['edited']['first']:.1f} dB, "
            f"clip {now['edited']['psnr']:.1f} dB, rendered {now['rendered']['psnr']:.1f} dB",
            flush=True,
        )
    losses = [
        {score: row["edited"][score] - row["rendered"][score] for score in ("first", *SCORES)}
        for row in (
            dict(zip(found, rows, strict=True)) for rows in zip(*found.values(), strict=True)
        )
    ]
    for name, rows in (found | {"edited less rendered": losses}).items():
        cells = []
        for score in ("first", *SCORES):
            mean, low, high = interval(np.array([row[score] for row in rows]))
            cells.append(f"{score} {mean:.2f} [{low:.2f}, {high:.2f}]")
        print(f"{name}: " + " · ".join(cells))


@torch.no_grad()
def conditions(editor: Editor, args: argparse.Namespace) -> None:
    """Print the mean squared error of v on validation scenes under right and wrong conditions."""
    size, frames = editor.defaults.size, args.frames
    scenes = [draw_scene("validation", i) for i in range(args.first, args.first + args.scenes + 1)]
    clips = render(scenes, size, frames).frames.numpy()
    losses: dict[str, list[float]] = {}
    for i, (scene, other) in enumerate(zip(scenes, scenes[1:], strict=False)):
        clean, first = editor.encode_frames(clips[i]), clips[i, 0]
        inputs = {
            "right": (scene.caption, first, False),
            "wrong text": (other.caption, first, False),
            "no text": ("", first, False),
            "no image embedding": (scene.caption, first, True),
            "another first frame": (scene.caption, clips[i + 1, 0], False),
        }
        for t in (100, 300, 500, 700, 900):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(i + t))
            level = editor.schedule.alpha_bar(t)
            noisy = level**0.5 * clean + (1 - level) ** 0.5 * noise
            v = level**0.5 * noise - (1 - level) ** 0.5 * clean
            for name, (text, frame, negative) in inputs.items():
                condition = editor.condition(text, frame, frames, size, negative=negative)
                error = (editor.predict(noisy, t, condition) - v).square().mean()
                losses.setdefault(name, []).append(float(error))
    right = np.mean(losses["right"])
    for name, found in losses.items():
        print(f"{name:24}{np.mean(found):.4f}  {100 * (np.mean(found) / right - 1):+.1f} %")


def _hex(color: tuple[float, float, float]) -> str:
    return "#" + bytes(round(255 * x) for x in color).hex()
