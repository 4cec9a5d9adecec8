"""Scores of edits of long clips, by windows and by other ways, on clips with known true edits.

    python bench/long_clips.py [--frames 29] [--scenes 12] [--first 0] [--steps 10] [-o bench-out]
    python bench/long_clips.py --keyframes

The clips are scenes that training has not seen, whose motion goes on at the speed of training:
paths are run there and back, orbits, turns and panning go on. In the second half of the scenes the
edited shape leaves the picture and comes back, or another shape comes in.

one pass    the whole clip is inverted and edited at once
windows     `Editor.invert_long` and `edit_long`
chain       clips of the model's length, each edited from the last edited frame of the one before;
            no feature of the package

--keyframes edits clips in which a shape comes in that the edit changes too, with the first frame
alone and with another edited frame that shows it.

Prints tables with 95 % bootstrap intervals, and writes long.json and a contact sheet of each scene.
`evaluations` is the work of the network in frames: how many frames it was given, over all branches,
for each frame of the clip.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import anyv2v
from anyv2v.editor import Editor
from anyv2v.long.windows import plan_windows
from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.render import render, tracks
from anyv2v.weights.demo.scenes import Motion, Scene, SceneEdit, Sprite, draw_edit, draw_scene
from anyv2v.weights.demo.scores import Truth, trajectory_error

FIRST = 7_000_000
"""Number of the first scene in the held-out split; other measurements take other ones."""
CASES = (
    *(("goes on", kind) for kind in ("colour", "background", "style", "texture", "shape", "add")),
    *(("leaves", kind) for kind in ("colour", "colour", "texture")),
    *(("enters", kind) for kind in ("background", "style", "colour")),
)
"""What happens in each scene in turn, and how it is edited."""
TRAINED = 8
"""Number of frames of a clip in training, over which a motion runs once."""
GONE = 1.3
"""How far a shape is moved to be out of the picture, as a fraction of the picture's side."""
FPS = 8


@dataclass(frozen=True)
class LongScene:
    """A clip that is longer than the model's window, with its true edit."""

    edit: SceneEdit
    """The source scene and the edited one; their captions are the prompts."""
    source: np.ndarray
    """uint8 RGB (f, h, w, 3)."""
    truth: np.ndarray
    """The true result of the edit, uint8 RGB (f, h, w, 3)."""
    without: np.ndarray
    """The true result without the scored shape."""
    cover: np.ndarray
    """(f, h, w) in 0..1: how much of a pixel shows the scored shape."""
    newcomer: np.ndarray
    """(f, h, w) in 0..1: how much of a pixel shows the shape that comes in; zero if none does."""


def draw(
    index: int, event: str, kind: str, frames: int, size: tuple[int, int], changed: bool = False
) -> LongScene:
    """Render one scene; `changed`: whether the edit changes the color of what comes in, too."""
    edit = draw_edit(kind, "held-out", FIRST + index)
    shifts = [np.zeros((frames, 2)) for _ in range(4)]
    if event == "leaves":
        shifts[edit.sprite] = away(edit.truth.sprites[edit.sprite].motion, frames, returns=True)
    elif event == "enters":
        edit, count = _with_newcomer(edit, index, changed), len(edit.source.sprites)
        shifts[count] = away(edit.source.sprites[count].motion, frames, returns=False)
    i = edit.sprite
    left = replace(edit.truth, sprites=edit.truth.sprites[:i] + edit.truth.sprites[i + 1 :])
    source, _ = render_long(edit.source, shifts, frames, size)
    truth, covers = render_long(edit.truth, shifts, frames, size)
    without, _ = render_long(left, shifts[:i] + shifts[i + 1 :], frames, size)
    newcomer = covers[-1] if event == "enters" else np.zeros_like(covers[0])
    return LongScene(edit, source, truth, without, covers[i], newcomer)


def _with_newcomer(edit: SceneEdit, index: int, changed: bool) -> SceneEdit:
    """The edit with one more shape in the source and in the truth."""
    sprite = draw_scene("held-out", FIRST + 500_000 + index).sprites[0]
    other = "yellow" if sprite.color != "yellow" else "blue"
    edited = replace(sprite, color=other) if changed else sprite
    return replace(
        edit,
        source=replace(edit.source, sprites=(*edit.source.sprites, sprite)),
        truth=replace(edit.truth, sprites=(*edit.truth.sprites, edited)),
    )


def away(motion: Motion, frames: int, returns: bool) -> np.ndarray:
    """Return the shift (f, 2) of a shape that leaves the picture and returns, or that comes in."""
    u = np.arange(frames) / (frames - 1)
    times, far = ((0.2, 0.4, 0.6, 0.8), (0, 1, 1, 0)) if returns else ((0.4, 0.6), (1, 0))
    direction = 1 if math.cos(motion.angle) >= 0 else -1
    return np.stack([direction * GONE * np.interp(u, times, far), np.zeros(frames)], -1)


def render_long(
    scene: Scene, shifts: Sequence[np.ndarray], frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene whose motion goes on: frames (f, h, w, 3), covers (s, f, h, w)."""
    each = [still(scene, shifts, k, frames) for k in range(frames)]
    rendered = render(each, size, 1)
    covers = rendered.covers.numpy()[:, :, 0].swapaxes(0, 1) if scene.sprites else np.zeros(0)
    return rendered.frames.numpy()[:, 0], covers


def still(scene: Scene, shifts: Sequence[np.ndarray], k: int, frames: int) -> Scene:
    """Return a scene that looks in its first frame like frame `k` of the long clip."""
    turns = (frames - 1) / (TRAINED - 1)
    there, u = TRAINED - 1 - abs(TRAINED - 1 - k % (2 * TRAINED - 2)), k / (TRAINED - 1)
    sprites = []
    for s, sprite in enumerate(scene.sprites):
        m, shift = sprite.motion, shifts[s][k]
        path = replace(m, radius=0.0, hop=0.0)
        round_ = replace(m, reach=0.0, bend=0.0, sweep=m.sweep * turns, beats=m.beats * turns)
        x, y = _center(path, there, TRAINED) + _center(round_, k, frames) - (m.x, m.y) + shift
        scale = m.growth ** (there / (TRAINED - 1) - 0.5)
        at = Motion(m.words, float(x), float(y), tilt=m.tilt + m.turn * u)
        sprites.append(replace(sprite, size=sprite.size * scale, motion=at))
    ground = scene.background
    phase = ground.phase + ground.pan * u / ground.period
    return replace(scene, sprites=tuple(sprites), background=replace(ground, phase=phase, pan=0.0))


def _center(motion: Motion, k: int, frames: int) -> np.ndarray:
    scene = Scene(
        (Sprite("circle", "red", "plain", 0.1, motion),), draw_scene("held-out", 0).background
    )
    return tracks([scene], 0, frames)[0, k].double().numpy()


class Counted:
    """Edits scenes in several ways, and counts how many frames the network is given."""

    def __init__(self, editor: Editor, steps: int, window: int, guide: str | None):
        self.editor, self.window, self.frames = editor, window, 0
        self.steps, self.asked = steps, {"steps": steps, "guide": guide}
        predict = editor.predict

        def counting(latents, t, conditions, taps=anyv2v.NO_TAPS):
            predicted = predict(latents, t, conditions, taps)
            self.frames += predicted.shape[0] * predicted.shape[2]
            return predicted

        editor.predict = counting  # pyright: ignore[reportAttributeAccessIssue]

    def _told(self, scene: LongScene, clip: np.ndarray) -> dict:
        recording = self.editor.recording(anyv2v.Video(clip, FPS), steps=self.steps)
        caption = scene.edit.source.caption
        return {"steps": self.steps, "prompt": caption, "recording": recording}

    def _once(self, scene: LongScene, clip: np.ndarray, first: np.ndarray) -> np.ndarray:
        source = self.editor.invert(anyv2v.Video(clip, FPS), **self._told(scene, clip))
        return self.editor.edit(source, first, scene.edit.truth.caption, **self.asked).frames

    def one_pass(self, scene: LongScene) -> np.ndarray:
        """Invert and edit the whole clip at once."""
        return self._once(scene, scene.source, scene.truth[0])

    def windows(self, scene: LongScene, keyframes: Sequence[int] = ()) -> np.ndarray:
        """Edit by windows that begin with a keyframe."""
        told = self._told(scene, scene.source[: self.window])
        source = self.editor.invert_long(anyv2v.Video(scene.source, FPS), self.window, **told)
        edited = {key: scene.truth[key] for key in keyframes}
        caption = scene.edit.truth.caption
        return self.editor.edit_long(source, scene.truth[0], caption, edited, **self.asked).frames

    def chain(self, scene: LongScene) -> np.ndarray:
        """Edit clip after clip, each from the last edited frame of the one before."""
        done = [scene.truth[:1]]
        for start in range(0, len(scene.source) - 1, self.window - 1):
            clip = scene.source[start : start + self.window]
            done.append(self._once(scene, clip, done[-1][-1])[1:])
        return np.concatenate(done)


def judge(clip: np.ndarray, scene: LongScene, window: int) -> dict[str, float]:
    """Compute the scores of one clip; frame 0 is left out."""
    blocks = [slice(a, a + window - 1) for a in range(1, len(clip) - window + 2, window - 1)]
    each = [psnr(clip[b], scene.truth[b]) for b in blocks]
    change = np.diff(clip.astype(float), axis=0) - np.diff(scene.truth.astype(float), axis=0)
    error = (change**2).mean((1, 2, 3))
    plan = plan_windows(len(clip), window)
    # where a window takes over from another: change k is that from frame k to frame k + 1
    border = sorted({x - 1 for w in plan[1:] for x in (w.start, w.stop) if x - 1 < len(error)})
    border = [k for k in border if k > 0]
    inside = [k for k in range(1, len(error)) if k not in border]
    truth = Truth(scene.source, scene.truth, scene.without, scene.cover, scene.cover)
    return {
        "psnr": psnr(clip[1:], scene.truth[1:]),
        "first": each[0],
        "last": psnr(clip[-(window - 1) :], scene.truth[-(window - 1) :]),
        "per window": float(np.polyfit(range(len(each)), each, 1)[0]) if len(each) > 1 else 0.0,
        "border": float(np.sqrt(error[border].mean())) if border else math.nan,
        "inside": float(np.sqrt(error[inside].mean())),
        "trajectory": trajectory_error(clip, truth),
    }


def interval(values: Sequence[float]) -> str:
    """Format the mean of some values with its 95 % bootstrap interval."""
    x = np.array([v for v in values if not math.isnan(v)])
    means = x[np.random.default_rng(0).integers(len(x), size=(2000, len(x)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{x.mean():.2f} [{low:.2f}, {high:.2f}]"


def table(rows: Sequence[dict]) -> str:
    """Format the mean scores of every way, over all scenes and over each kind of event."""
    lines = []
    for event in ("all", *dict.fromkeys(row["event"] for row in rows)):
        chosen = [row for row in rows if event in ("all", row["event"])]
        ways = list(chosen[0]["ways"])
        lines.append(f"\n{event}, {len(chosen)} scenes")
        for way in ways:
            scores = [row["ways"][way] for row in chosen]
            cells = [f"{name} {np.nanmean([s[name] for s in scores]):.2f}" for name in scores[0]]
            less = [
                s["psnr"] - row["ways"][ways[0]]["psnr"]
                for s, row in zip(scores, chosen, strict=True)
            ]
            lines.append(f"{way:10} {'; '.join(cells)}; minus {ways[0]} {interval(less)}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Edit and score the scenes in all ways."""
    editor = anyv2v.load(args.weights, device="cpu")
    window = args.window or editor.defaults.frames
    counted, rows = Counted(editor, args.steps, window, args.guide), []
    ways: dict[str, Callable[[LongScene], np.ndarray]] = {
        "one pass": counted.one_pass,
        "windows": counted.windows,
        "chain": counted.chain,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for i in range(args.first, args.first + args.scenes):
        event, kind = CASES[i % len(CASES)]
        scene = draw(i, event, kind, args.frames, editor.defaults.size)
        row, sheet = {"scene": i, "event": event, "kind": kind, "ways": {}}, [scene.truth]
        for name in args.ways:
            counted.frames = 0
            clip = ways[name](scene)
            scores = judge(clip, scene, window)
            scores["evaluations"] = counted.frames / args.frames
            row["ways"][name] = scores
            sheet.append(clip)
            print(i, event, kind, name, json.dumps(scores), flush=True)
        rows.append(row)
        save_sheet(args.output / f"long-{i:03}.png", [scene.source, *sheet])
        (args.output / "long.json").write_text(
            json.dumps({**vars(args), "output": "", "rows": rows})
        )
    print(table(rows))


def run_keyframes(args: argparse.Namespace) -> None:
    """Compare edits of what comes in later, without and with a keyframe that shows it."""
    editor = anyv2v.load(args.weights, device="cpu")
    counted = Counted(editor, args.steps, args.window or editor.defaults.frames, args.guide)
    args.output.mkdir(parents=True, exist_ok=True)
    gains: dict[str, list[float]] = {"newcomer": [], "all": []}
    for i in range(args.first, args.first + args.scenes):
        kind = ("colour", "style")[i % 2]
        scene = draw(i, "enters", kind, args.frames, editor.defaults.size, kind == "colour")
        key = round(0.6 * (args.frames - 1)) + 1
        clips = counted.windows(scene), counted.windows(scene, [key])
        shown = (scene.newcomer > 0.5) & (np.arange(args.frames) != key)[:, None, None]
        scores = [(psnr(c[shown], scene.truth[shown]), psnr(c[1:], scene.truth[1:])) for c in clips]
        print(i, kind, "newcomer, all: without", scores[0], "with", scores[1], flush=True)
        gains["newcomer"].append(scores[1][0] - scores[0][0])
        gains["all"].append(scores[1][1] - scores[0][1])
        save_sheet(args.output / f"keyframes-{i:03}.png", [scene.source, scene.truth, *clips])
    for name, values in gains.items():
        print(f"{name}: with a keyframe minus without {interval(values)} dB")


def save_sheet(path: Path, clips: Sequence[np.ndarray], zoom: int = 2) -> None:
    """Save one row of frames for each clip."""
    picture = np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips])
    Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--frames", type=int, default=29)
    parser.add_argument("--window", type=int, default=0, help="0: the weights' own")
    parser.add_argument("--scenes", type=int, default=len(CASES))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    every = ["one pass", "windows", "chain"]
    parser.add_argument("--ways", nargs="+", choices=every, default=every)
    parser.add_argument("--guide", choices=["auto", "patches"], help="see Editor.edit")
    parser.add_argument("--keyframes", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    (run_keyframes if args.keyframes else run)(args)


if __name__ == "__main__":
    main()
