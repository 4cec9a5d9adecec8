"""Scores of a model's edits on clips whose true edits are known exactly.

    python -m bench.edit_quality [--weights DIR] [--scenes 60] [--first 0] [-o bench-out]
    python -m bench.edit_quality --scenes 120 --kinds colour background
    python -m bench.edit_quality --hard --scenes 24 --rows edit warp difference copy
    python -m bench.edit_quality --sweep --scenes 12
    python -m bench.edit_quality --editor recolour [--scenes 10]

Scenes are held out from training; number i is edited in the i-th way in turn: colour, texture,
shape, background, style, add. Each is inverted, edited, and scored beside its baselines: the edited
frame repeated, the source unedited, sampling from random noise, inverted latents without injection.
Three baselines have no network: the edited frame warped along the source's optical flow, the source
plus the warped difference, and the edited frame copied patch by patch. Further rows: the original's
sites and fractions; injection from random noise; what the autoencoder alone loses; and the source
reconstructed from its inversion. --rows makes some of them only. --hard takes scenes in which the
colors of the first frame are not those of later ones.

Prints a table with 95 % bootstrap intervals, writes scores.json with every number, and contact
sheets of the best, the median and the worst scene. Slices (--first, --scenes, --rows) are collected
in one scores.json; sheets show the rows that were made last. --sweep compares sites and fractions
of injection on validation scenes. --frames 3 measures how well two or three frames hold together,
with injection and without. --conditions measures how much the loss rises under wrong conditions.
--editor makes the first frames of the color edits by an editor without weights, with the
instruction "OLD > NEW", instead of rendering.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import anyv2v
from anyv2v.editor import Editor
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.hard import HARDSHIPS, draw_hard_edit
from anyv2v.weights.demo.scenes import KINDS, SceneEdit, draw_edit
from bench.edit_quality.rows import ROWS, Case, with_defaults
from bench.edit_quality.studies import conditions, first_frames, sweep
from bench.edit_quality.table import contact_sheet, score, table

HARD = 1000
"""Number of the first held-out scene that is made hard; ordinary ones are counted from 0."""


def run(editor: Editor, args: argparse.Namespace) -> None:
    """Judge scenes that training has not seen; add them to scores.json and print the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "scores.json"
    kept = _opened(path, editor, args)
    rows = {name: row for name, row in ROWS.items() if name in (args.rows or ROWS)}
    lacks = {name: row.lacks(editor.backbone.name) for name, row in rows.items()}
    for name, why in lacks.items():
        if why:
            print(f"{name}: left out, because {why}")
    rows = {name: row for name, row in rows.items() if not lacks[name]}
    if not rows:
        raise SystemExit("no row is left")
    for i in range(args.first, args.first + args.scenes):
        about, edit = draw(i, args.hard)
        if about["kind"] not in args.kinds:
            continue
        case = Case(editor, edit, args.frames)
        clips = {name: row.make(case) for name, row in rows.items()}
        scene = kept["scenes"].setdefault(str(i), about | {"scores": {}})
        scene["scores"] |= {name: score(name, clip, case.truth) for name, clip in clips.items()}
        _save(args.output / f"scene-{i:03}.png", contact_sheet(clips, case.truth))
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n")
        made = ", ".join(f"{name} {scene['scores'][name]['psnr']:.1f}" for name in rows)
        print(f"scene {i}, {about['kind']}: {made} dB", flush=True)
    print(table(kept["scenes"]))
    _save_examples(kept["scenes"], args.output)


def draw(i: int, hard: bool) -> tuple[dict[str, str], SceneEdit]:
    """Draw scene i with what scores.json says of it; all kinds take turns, then all hardships."""
    kind = KINDS[i % len(KINDS)]
    if hard:
        hardship = HARDSHIPS[i // len(KINDS) % len(HARDSHIPS)]
        edit = draw_hard_edit(kind, hardship, "held-out", HARD + i)
        return {"kind": kind, "hardship": hardship, "caption": edit.truth.caption}, edit
    edit = draw_edit(kind, "held-out", i)
    return {"kind": kind, "caption": edit.truth.caption}, edit


def _opened(path: Path, editor: Editor, args: argparse.Namespace) -> dict:
    """Scores of earlier runs, which must be of the same model, settings and scenes."""
    own = editor.defaults
    used = {"steps": own.steps, "guidance": own.guidance, "injection": own.injection.fractions}
    used |= {"tolerance": own.tolerance, "solved_from": own.solved_from}
    facts = {"fingerprint": editor.fingerprint, "settings": used, "frames": args.frames}
    facts["hard"] = args.hard
    if not path.exists():
        return {**facts, "scenes": {}}
    kept = json.loads(path.read_text())
    if any(kept.get(name) != value for name, value in facts.items()):
        raise SystemExit(f"{path}: is of other weights, settings or scenes; take another folder")
    return kept


def _save_examples(scenes: dict[str, dict], folder: Path) -> None:
    """Copy the sheets of the worst, the median and the best edit among scenes with an edit."""
    edited = [i for i in scenes if "edit" in scenes[i]["scores"]]
    order = sorted(edited, key=lambda i: scenes[i]["scores"]["edit"]["psnr"])
    for name, at in (("worst", 0), ("median", len(order) // 2), ("best", -1)) if order else ():
        i = order[at]
        _save(folder / f"{name}.png", np.asarray(Image.open(folder / f"scene-{int(i):03}.png")))
        print(f"{name}: scene {i}, {scenes[i]['kind']}, {scenes[i]['caption']}")


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.edit_quality", description="Scores of edits whose truth is known."
    )
    parser.add_argument("--weights", default="demo", help="a folder of weights, demo or flow")
    parser.add_argument("--scenes", type=int, help="60, or 10 with --editor")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, help="default: the model's own")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all", metavar="ROW")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="leave out scenes of other kinds"
    )
    parser.add_argument("--hard", action="store_true", help="scenes whose colors cannot be copied")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--conditions", action="store_true")
    parser.add_argument("--editor", choices=("recolour",), help="makes the first frames")
    parser.add_argument("--editor-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5], help="of the sweep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # a scene with noise of a wrong norm counts as it is
    editor = with_defaults(anyv2v.load(args.weights), noise_range=())
    if (args.sweep or args.conditions) and editor.backbone.name != "i2vgen":
        parser.error("--sweep and --conditions are for weights of i2vgen")
    args.frames = args.frames or editor.defaults.frames
    args.scenes = args.scenes or (10 if args.editor else 60)
    judged = sweep if args.sweep else conditions if args.conditions else run
    (first_frames if args.editor else judged)(editor, args)


if __name__ == "__main__":
    main()
