"""Scores of a model's edits on clips whose true edits are known exactly.

    python bench/edit_quality.py [--weights DIR] [--scenes 60] [--first 0] [-o bench-out]
    python bench/edit_quality.py --sweep --scenes 12
    python bench/edit_quality.py --editor recolour [--scenes 10]

Scenes are held out from training; number i is edited in the i-th way in turn: colour, texture,
shape, background, style, add. Each is inverted, edited, and scored beside its baselines: the edited
frame repeated, the source unedited, sampling from random noise, inverted latents without injection.
Further rows: the original's sites and fractions; injection from random noise; what the
autoencoder alone loses; and the source reconstructed from its inversion.

Prints a table with 95 % bootstrap intervals, writes scores.json with every number, and contact
sheets of the best, the median and the worst scene. Slices (--first, --scenes) are collected in one
scores.json. --sweep compares sites and fractions of injection on validation scenes. --frames 3
measures how well two or three frames hold together, with injection and without. --conditions
measures how much the loss rises under wrong conditions. --editor makes the first frames of the
color edits by an editor without weights, with the instruction "OLD > NEW", instead of rendering.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import anyv2v
from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.editor import Editor
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.media.psnr import psnr
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.recipe import ATTENTION
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import COLORS, KINDS, SceneEdit, draw_edit, draw_scene
from anyv2v.weights.demo.scores import Truth, scores
from anyv2v.weights.demo.settings import BEST, Settings

SCORES = ("psnr", "ssim", "outside", "trajectory", "iou", "iou_source", "colour", "flicker")
ORIGINAL = anyv2v.Injection(conv=0.2, spatial=0.2, temporal=0.5)
FPS = 8


def judge(
    editor: Editor,
    edit: SceneEdit,
    settings: Settings,
    injections: dict[str, anyv2v.Injection],
    frames: int,
) -> tuple[dict[str, np.ndarray], Truth]:
    """Edit one scene in all ways; returns clips by the name of the way, and the truth."""
    truth = Truth.of(edit, editor.defaults.size, frames)
    caption = edit.source.caption if settings.prompted else ""
    video = anyv2v.Video(truth.source, FPS)
    source = editor.invert(video, steps=settings.steps, prompt=caption)

    def sample(injection: anyv2v.Injection, random_ratio: float = 0.0) -> np.ndarray:
        return editor.edit(
            source,
            truth.frames[0],
            edit.truth.caption,
            negative_prompt="",
            steps=settings.steps,
            guidance=settings.guidance,
            injection=injection,
            random_ratio=random_ratio,
        ).frames

    clips = {name: sample(injection) for name, injection in injections.items()}
    if "edit" in injections:
        clips |= {
            "static": np.repeat(truth.frames[:1], frames, axis=0),
            "source": truth.source,
            "random": sample(NO_INJECTION, random_ratio=1.0),
            "inverted": sample(NO_INJECTION),
            "random, injected": sample(injections["edit"], random_ratio=1.0),
            "autoencoder": editor.decode(editor.encode_frames(truth.frames)),
            "reconstruction": editor.reconstruct(source, caption, steps=settings.steps).frames,
        }
    return clips, truth


def score_all(clips: dict[str, np.ndarray], truth: Truth) -> dict[str, dict[str, float | None]]:
    """Compute name -> score -> value; the reconstruction is compared with the source."""
    results = {name: scores(clip, truth) for name, clip in clips.items()}
    again = psnr(clips["reconstruction"][1:], truth.source[1:])
    results["reconstruction"] = dict.fromkeys(SCORES) | {"psnr": again}
    # JSON has no NaN
    return {
        name: {k: None if v is None or np.isnan(v) else v for k, v in values.items()}
        for name, values in results.items()
    }


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean and the bounds of its 95 % bootstrap interval; NaN are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return (float("nan"),) * 3
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def table(results: dict[str, dict]) -> str:
    """Format the mean of every score for every kind of edit, and the interval of the PSNR."""
    lines = []
    for kind in ("all", *KINDS, "colour+background"):
        rows = [r for r in results.values() if kind == "all" or r["kind"] in kind.split("+")]
        if not rows:
            continue
        lines.append(f"\n{kind}, {len(rows)} scenes\n{'':24}" + "".join(f"{s:>12}" for s in SCORES))
        for name in rows[0]["scores"]:
            cells = []
            for score in SCORES:
                values = np.array([r["scores"][name][score] for r in rows], dtype=float)
                mean, low, high = interval(values)
                text = "" if np.isnan(mean) else f"{mean:.2f}" if mean > 3 else f"{mean:.3f}"
                if score == "psnr":
                    text += f" ±{(high - low) / 2:.1f}"
                cells.append(f"{text:>12}")
            lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def contact_sheet(clips: dict[str, np.ndarray], truth: Truth, zoom: int = 2) -> np.ndarray:
    """Draw one row of frames for each clip: source, truth, then the given clips in order."""
    rows = [truth.source, truth.frames, *clips.values()]
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return picture.repeat(zoom, 0).repeat(zoom, 1)


def run(editor: Editor, args: argparse.Namespace) -> None:
    """Judge scenes that training has not seen; add them to scores.json and print the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "scores.json"
    used = {**vars(BEST), "injection": BEST.injection.fractions}
    facts = {"fingerprint": editor.fingerprint, "settings": used, "frames": args.frames}
    kept = json.loads(path.read_text()) if path.exists() else {**facts, "scenes": {}}
    if any(kept[name] != value for name, value in facts.items()):
        raise SystemExit(f"{path}: is of other weights or settings; take another folder")
    injections = {"edit": BEST.injection, "original sites": with_original_sites(editor, ORIGINAL)}
    for i in range(args.first, args.first + args.scenes):
        edit = draw_edit(KINDS[i % len(KINDS)], "held-out", i)
        clips, truth = judge(editor, edit, BEST, injections, args.frames)
        found = {"kind": KINDS[i % len(KINDS)], "caption": edit.truth.caption}
        kept["scenes"][str(i)] = found | {"scores": score_all(clips, truth)}
        _save(args.output / f"scene-{i:03}.png", contact_sheet(clips, truth))
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n")
        print(
            f"scene {i}, {found['kind']}: {kept['scenes'][str(i)]['scores']['edit']['psnr']:.1f} dB"
        )
    results = kept["scenes"]
    print(table(results))
    order = sorted(results, key=lambda i: results[i]["scores"]["edit"]["psnr"])
    for name, i in (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])):
        sheet = Image.open(args.output / f"scene-{int(i):03}.png")
        _save(args.output / f"{name}.png", np.asarray(sheet))
        print(f"{name}: scene {i}, {results[i]['kind']}, {results[i]['caption']}")


def with_original_sites(editor: Editor, injection: anyv2v.Injection) -> anyv2v.Injection:
    """The same injection at the sites, on the way up, that the original chose in its network."""
    layers = sum(site.startswith("up.1.res.") for site in editor.sites) - 1
    return anyv2v.Injection(sites=paper_sites(ATTENTION, layers)).over(injection)


def sweep(editor: Editor, args: argparse.Namespace) -> None:
    """Compare sites and fractions of injection on validation scenes; BEST was chosen by this."""
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
        clips, truth = judge(editor, edit, BEST, candidates, args.frames)
        for name in candidates:
            found[name].setdefault(kind, []).append(scores(clips[name], truth))
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
        truth = Truth.of(edit, editor.defaults.size, args.frames)
        sprites = edit.source.sprites[edit.sprite], edit.truth.sprites[edit.sprite]
        instruction = " > ".join(_hex(COLORS[sprite.color]) for sprite in sprites)
        frames = {
            "source": truth.source[0],
            "edited": anyv2v.edit_frame(truth.source[0], args.editor, instruction, **options),
            "rendered": truth.frames[0],
        }
        source = editor.invert(
            anyv2v.Video(truth.source, FPS), steps=BEST.steps, prompt=edit.source.caption
        )
        for name, frame in frames.items():
            clip = truth.source
            if name != "source":
                clip = editor.edit(
                    source,
                    frame,
                    edit.truth.caption,
                    negative_prompt="",
                    steps=BEST.steps,
                    guidance=BEST.guidance,
                    injection=BEST.injection,
                ).frames
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


def _hex(color: tuple[float, float, float]) -> str:
    return "#" + bytes(round(255 * x) for x in color).hex()


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


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="demo", help="a folder of weights, or demo")
    parser.add_argument("--scenes", type=int, help="60, or 10 with --editor")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, help="default: the model's own")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--conditions", action="store_true")
    parser.add_argument("--editor", choices=("recolour",), help="makes the first frames")
    parser.add_argument("--editor-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5], help="of the sweep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    editor = anyv2v.load(args.weights)
    args.frames = args.frames or editor.defaults.frames
    args.scenes = args.scenes or (10 if args.editor else 60)
    judged = sweep if args.sweep else conditions if args.conditions else run
    (first_frames if args.editor else judged)(editor, args)


if __name__ == "__main__":
    main()
