"""What `anyv2v.protect` changes: plain and protected edits of scenes whose true edits are known.

    python bench/protection.py [--weights DIR] [--scenes 36] [--first 7000200] [--steps 10] [-o DIR]

Scenes are held out from training; number i is edited in the i-th way in turn: colour, texture,
shape, background, style, add. Each is edited twice: from its rendered first frame, and from the
same after the autoencoder, as a diffusion model returns it, in which no pixel is exactly the
source's.

Prints, per way and over all, how many dB the protected edit is closer to the truth than the plain
one, with 95 % bootstrap intervals over scenes: over the whole picture, inside where the edit
changes something, in the rim of 2 pixels around that, and outside of both. Frame 0 is left out.
Writes every number to protection.json, and a contact sheet per scene: source, truth, plain edit,
protected edit, mask.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

import anyv2v
from anyv2v.editor import Editor
from anyv2v.media.psnr import psnr
from anyv2v.protection.mask import Protection
from anyv2v.protection.protect import protect
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import KINDS, draw_edit
from anyv2v.weights.demo.scores import Truth, trajectory_error
from anyv2v.weights.demo.settings import BEST

FPS, FRAMES = 8, 8
REGIONS = ("all", "outside", "rim", "inside")
FIRST_FRAMES = ("rendered", "autoencoded")


def regions(truth: Truth) -> dict[str, np.ndarray]:
    """Masks of the frames after the first, bool (f - 1, h, w); too small ones are left out."""
    changed = (truth.source != truth.frames).any(-1)[1:]
    near = ndimage.maximum_filter(changed, (1, 5, 5))
    found = {"outside": ~near, "rim": near & ~changed, "inside": changed}
    large = {name: mask for name, mask in found.items() if mask.mean() > 0.005}
    return {"all": np.ones_like(changed)} | large


def judge(editor: Editor, edit, truth: Truth, first: np.ndarray, source, steps: int, guide):
    """Scores of one edit, plain and protected, and the clips."""
    extra = {} if guide is None else {"guide": guide}
    plain = editor.edit(
        source,
        first,
        edit.truth.caption,
        negative_prompt="",
        steps=steps,
        guidance=BEST.guidance,
        injection=BEST.injection,
        **extra,
    )
    kept = protect(plain, source)
    scores = {"kept": kept.kept, "same": bool((kept.frames == plain.frames).all())}
    for name, mask in regions(truth).items():
        for way, clip in (("plain", plain), ("protected", kept)):
            scores[f"{name}, {way}"] = psnr(clip.frames[1:][mask], truth.frames[1:][mask])
    scores["changed"] = float((truth.source != truth.frames).any(-1).mean())
    for way, clip in (("plain", plain), ("protected", kept)):
        error = trajectory_error(clip.frames, truth)
        scores[f"trajectory, {way}"] = None if np.isnan(error) else error
    factor = first.shape[1] // plain.latents.shape[-1]
    protection = Protection(truth.source[:1], first[None], factor)
    masks = [protection.mask(*x) for x in zip(truth.source, plain.frames, strict=True)]
    gray = np.repeat(np.uint8(255 * np.stack(masks))[..., None], 3, -1)
    return scores, [truth.source, truth.frames, plain.frames, kept.frames, gray]


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The bounds of the 95 % bootstrap interval of the mean."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def table(scenes: list[dict], first: str) -> str:
    """Protected less plain, in dB, for every region and kind of edit."""
    lines = [f"\n{first} first frames, protected less plain, dB: mean of plain, gain [95 %], worst"]
    for kind in ("all", *KINDS):
        rows = [s for s in scenes if kind in ("all", s["kind"])]
        if not rows:
            continue
        cells = []
        for region in REGIONS:
            scores = [r[first] for r in rows if f"{region}, plain" in r[first]]
            if not scores:
                continue
            plain, better = (
                np.array([s[f"{region}, {way}"] for s in scores]) for way in ("plain", "protected")
            )
            gain = better - plain
            low, high = interval(gain)
            cells.append(
                f"{region} {plain.mean():.1f} {gain.mean():+.2f} [{low:.2f}, {high:.2f}], "
                f"{gain.min():+.2f}"
            )
        kept = np.mean([r[first]["kept"] for r in rows])
        lines.append(f"{kind:10} ({len(rows)}, kept {kept:.0%})  " + "  |  ".join(cells))
    return "\n".join(lines)


def summary(scenes: list[dict], first: str) -> str:
    """What the table's means do not say: styles, and edits of more than half of the picture."""
    style = [s[first] for s in scenes if s["kind"] == "style"]
    whole = [s for s in style if s["changed"] > 0.95]
    large = [s[first] for s in scenes if s[first]["changed"] > 0.5]
    losses = [s["inside, protected"] - s["inside, plain"] for s in large]
    paths = [s[first] for s in scenes if s[first]["trajectory, plain"] is not None]
    before, after = (
        np.mean([s[f"trajectory, {way}"] for s in paths]) for way in ("plain", "protected")
    )
    return (
        f"styles that change all: {sum(s['same'] for s in whole)} of {len(whole)} have the same "
        f"bits; {len(style) - len(whole)} other styles\n{len(large)} scenes in which more than "
        f"half changes: inside {min(losses, default=0):+.2f} dB at worst\n"
        f"trajectory {before:.2f} -> {after:.2f} pixels"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="demo", help="a folder of weights, or demo")
    parser.add_argument("--scenes", type=int, default=36)
    parser.add_argument("--first", type=int, default=7_000_200, help="number of the first scene")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guide", choices=("auto", "patches"), help="of both edits, see edit()")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out/protection"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    editor, scenes = anyv2v.load(args.weights), []
    for i in range(args.first, args.first + args.scenes):
        edit = draw_edit(kind := KINDS[i % len(KINDS)], "held-out", i)
        truth = Truth.of(edit, editor.defaults.size, FRAMES)
        video = anyv2v.Video(truth.source, FPS)
        source = editor.invert(video, steps=args.steps, prompt=edit.source.caption)
        encoded = editor.decode(editor.encode_frames(truth.frames[:1]))[0]
        scene, rows = {"number": i, "kind": kind, "caption": edit.truth.caption}, []
        for name, first in zip(FIRST_FRAMES, (truth.frames[0], encoded), strict=True):
            scene[name], clips = judge(editor, edit, truth, first, source, args.steps, args.guide)
            rows += clips[2 * (name != FIRST_FRAMES[0]) :]
        scenes.append(scene)
        sheet = np.concatenate([np.concatenate(list(clip), axis=1) for clip in rows])
        Image.fromarray(sheet.repeat(3, 0).repeat(3, 1)).save(args.output / f"{i}-{kind}.png")
        gain = [scene[x]["all, protected"] - scene[x]["all, plain"] for x in FIRST_FRAMES]
        print(f"{i} {kind}: {gain[0]:+.2f}, {gain[1]:+.2f} dB", flush=True)
        facts = {"fingerprint": editor.fingerprint, "steps": args.steps, "guide": args.guide}
        with atomic_path(args.output / "protection.json") as temporary:
            temporary.write_text(json.dumps(facts | {"scenes": scenes}, indent=1) + "\n")
    for name in FIRST_FRAMES:
        print(table(scenes, name), summary(scenes, name), sep="\n")


if __name__ == "__main__":
    main()
