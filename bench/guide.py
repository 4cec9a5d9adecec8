"""What a guided start changes: edits of scenes whose true edits are known, with and without it.

    python bench/guide.py [--weights DIR] [--scenes 60] [--first 7000400] [--steps 10] [-o DIR]

Scenes are held out from training; number i is edited in the i-th way in turn: colour, texture,
shape, background, style, add. Each is inverted once and edited without a guess, with the guess that
features carry (auto), and with the one that patches carry, from the first step, from 0.2 and from
0.3 of the steps. "copy 5x5" is the guess of the patches itself, without a network. Every edit is
also scored after `protect`.

Prints, per kind of edit, the PSNR of each row against the truth and what it gains over the edit
without a guess, in dB, with 95 % bootstrap intervals over scenes and the worst scene; and the
distance of the changed shape from its true path, in pixels. Frame 0 is left out. Scenes whose
ground is plain and panning, and gets another pattern, are reported apart: no pixel of the source
shows their ground's motion. Writes every number to guide.json, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import anyv2v
from anyv2v.correspondence.patches import match_patches
from anyv2v.editor import Editor
from anyv2v.media.psnr import psnr
from anyv2v.protection.protect import protect
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import KINDS, SceneEdit, draw_edit
from anyv2v.weights.demo.scores import Truth, trajectory_error

FPS, FRAMES = 8, 8
EDIT = "edit"
ROWS = {
    EDIT: (None, 0.0),
    "auto": ("auto", 0.0),
    "patches": ("patches", 0.0),
    "patches from 0.2": ("patches", 0.2),
    "patches from 0.3": ("patches", 0.3),
}
"""Name of a row -> the guide, and the part of the steps that is left out."""
COPY, APART, PROTECTED = "copy 5x5", "apart", ", protected"


def is_hopeless(edit: SceneEdit) -> bool:
    """Whether the edit's pattern has to move as nothing in the source's pixels does."""
    ground = edit.source.background
    return edit.truth.background != ground and ground.pattern == "plain" and ground.pan != 0


def copied(truth: Truth) -> np.ndarray:
    """The first frame of the truth, carried to each frame of the source by patches of 5x5."""
    source, edited = (torch.from_numpy(x.copy()) for x in (truth.source, truth.frames[:1]))
    return np.stack([match_patches(x, source[:1]).take(edited).numpy() for x in source])


def judge(
    editor: Editor, edit: SceneEdit, steps: int, rows: list[str]
) -> dict[str, dict[str, float | None]]:
    """The scores of `rows`, names in `ROWS`, and of the copy for one scene."""
    truth = Truth.of(edit, editor.defaults.size, FRAMES)
    video, caption = anyv2v.Video(truth.source, FPS), edit.source.caption
    recording = editor.recording(video, steps=steps)
    source = editor.invert(video, steps=steps, prompt=caption, recording=recording)
    clips = {COPY: copied(truth)}
    for name in rows:
        guide, part = ROWS[name]
        done = editor.edit(
            source,
            truth.frames[0],
            edit.truth.caption,
            steps=steps,
            start=round(part * steps),
            guide=guide,
        )
        clips[name] = done.frames
        clips[name + PROTECTED] = protect(done, source).frames
    return {name: _scores(clip, truth) for name, clip in clips.items()}


def _scores(clip: np.ndarray, truth: Truth) -> dict[str, float | None]:
    path = trajectory_error(clip, truth)
    # JSON has no NaN
    return {
        "psnr": psnr(clip[1:], truth.frames[1:]),
        "trajectory": None if np.isnan(path) else path,
    }


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The bounds of the 95 % bootstrap interval of the mean."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def table(scenes: list[dict]) -> str:
    """All rows: for all scenes but the hopeless ones, for each kind of edit, for the hopeless."""
    lines = []
    for kind in ("all", *KINDS, APART):
        rows = [
            s["scores"]
            for s in scenes
            if s[APART] == (kind == APART) and kind in ("all", APART, s["kind"])
        ]
        if rows:
            lines += [f"\n{kind}, {len(rows)} scenes", *(_line(name, rows) for name in rows[0])]
    return "\n".join(lines)


def _line(name: str, rows: list[dict]) -> str:
    values, plain = (np.array([row[x]["psnr"] for row in rows]) for x in (name, EDIT))
    paths = [row[name]["trajectory"] for row in rows if row[name]["trajectory"] is not None]
    gain = values - plain
    low, high = interval(gain)
    return (
        f"{name:28}{values.mean():6.2f} dB  gain {gain.mean():+.2f} [{low:+.2f}, {high:+.2f}], "
        f"worst {gain.min():+.2f}   path {np.mean(paths) if paths else np.nan:.2f} px"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="demo", help="a folder of weights, or demo")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--first", type=int, default=7_000_400, help="number of the first scene")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], metavar="ROW")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out/guide"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    editor = anyv2v.load(args.weights, device="cpu")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "guide.json"
    rows = list(dict.fromkeys([EDIT, *args.rows]))
    facts = {"fingerprint": editor.fingerprint, "steps": args.steps, "rows": rows}
    kept = json.loads(path.read_text()) if path.exists() else {**facts, "scenes": {}}
    if any(kept[name] != value for name, value in facts.items()):
        raise SystemExit(f"{path}: is of other weights, steps or rows; take another folder")
    for i in range(args.first, args.first + args.scenes):
        if str(i) in kept["scenes"]:
            continue
        kind = KINDS[i % len(KINDS)]
        edit = draw_edit(kind, "held-out", i)
        found = {
            "kind": kind,
            APART: is_hopeless(edit),
            "scores": judge(editor, edit, args.steps, rows),
        }
        kept["scenes"][str(i)] = found
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n")
        values = (f"{name} {found['scores'][name]['psnr']:.1f}" for name in rows)
        print(f"scene {i}, {kind}: {', '.join(values)} dB", flush=True)
    print(table(list(kept["scenes"].values())))


if __name__ == "__main__":
    main()
