"""A folder in which the blocks of the documents run: the files that they name, small."""

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.convert.published import convert
from anyv2v.weights.packaged import PACKAGED
from anyv2v.weights_folders import expected_shapes
from tests import wan
from tests.docs.blocks import ROOT, blocks
from tests.oracles import adapter_snapshot, clip_snapshot, sd_snapshot

CLIPS = ("man-walking", "old-man", "couple", "ballet", "kitten", "rough")
PICTURES = (
    *("edited", "later", "robot", "snow", "green", "style", "dog"),
    # those of the original's edits
    *("white-hair", "party-hat", "snowing", "darth-vader", "starry-night", "cyberpunk"),
    *("van-gogh", "jack-ma", "hinton", "elon-musk", "yann-lecun", "helmet"),
)
MASKS = ("mask", "where")
EDITOR = "examples/anydoor_once.py"
PAINTS = """import sys
from PIL import Image
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
Image.open(given["--input"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(given["--output"])
"""
SMALLER = {'"image_size": 512': '"image_size": 64', "[512, 512]": "[64, 64]"}
SMALLER |= {
    "n_frames: 16": "n_frames: 4",
    "n_steps: 500": "n_steps: 4",
    "n_steps: 50": "n_steps: 2",
}


def frames(count: int = 12) -> np.ndarray:
    """A purple square that moves over a gray floor."""
    clip = np.full((count, 64, 64, 3), 120, np.uint8)
    clip[:, 40:] = 80
    for i in range(count):
        clip[i, 20:44, 4 + 2 * i : 28 + 2 * i] = (150, 30, 170)
    return clip


def make(world: Path, weights: Path) -> None:
    """Fills the folder; weights: the tiny I2VGen-XL of the tests."""
    for i, name in enumerate(CLIPS):
        anyv2v.write_video(world / f"{name}.mp4", np.roll(frames(), 3 * i, axis=1), fps=8)
    for i, name in enumerate(PICTURES):
        picture = frames(1)[0].copy()
        picture[20:44, 4:28] = (20 + 10 * i, 90, 60)
        Image.fromarray(picture).save(world / f"{name}.png")
    for name in MASKS:
        mask = np.zeros((64, 64), np.uint8)
        mask[16:48, :32] = 255
        Image.fromarray(mask).save(world / f"{name}.png")
    (world / "weights").mkdir()
    with_defaults(weights, world / "weights" / "i2vgen-xl", size=[64, 64], frames=4, fps=8, steps=2)
    small = {"size": [64, 64], "frames": 9, "fps": 8, "steps": 5, "noise_range": None}
    wan.write(world / "weights" / "wan2.2-ti2v-5b", **small)
    with_defaults(PACKAGED["demo"], world / "weights" / "demo", steps=2)
    finished(world / "out.mp4", world)
    editors(world)
    batches(world)
    benchmark(world / "bench")


def with_defaults(weights: Path, folder: Path, **defaults) -> None:
    """The same weights, whose config.json has other defaults."""
    folder.mkdir()
    for path in weights.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((weights / "config.json").read_text())
    config["defaults"] |= defaults
    (folder / "config.json").write_text(json.dumps(config))


def finished(output: Path, world: Path) -> None:
    """An edit of the first clip with its sidecar, for pages that begin with a finished edit."""
    words = [
        "edit",
        world / "man-walking.mp4",
        "--frame",
        world / "edited.png",
        "--prompt",
        "a man",
    ]
    words += ["--weights", world / "weights" / "i2vgen-xl", "-o", output, "--feature-memory", "0"]
    assert main([*map(str, words), "-q"]) == 0


def editors(world: Path) -> None:
    """Stable Diffusion, an adapter and a CLIP, tiny; and a stand-in for AnyDoor."""
    published = world / "published"
    published.mkdir()
    found = {"sd15": sd_snapshot.write(published / "sd15", 4)}
    found["ip-adapter"] = adapter_snapshot.write_ip_adapter(published / "ip-adapter")
    for name, source in found.items():
        convert(source, world / "weights" / name, expected_shapes)
    clip_snapshot.write(world / "clip-vit-base-patch32")
    python = world / "AnyDoor" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (world / EDITOR).parent.mkdir()
    (world / EDITOR).write_text(PAINTS)


def batches(world: Path) -> None:
    """The file of jobs that the page on batches shows, and files of the original."""
    (jobs,) = blocks("yaml")
    (world / "jobs.yaml").write_text(jobs.text)
    original = ROOT / "examples" / "batch" / "anyv2v"
    for name, here in (("template.yaml", "template.yaml"), ("group.json", "group_config.json")):
        text = (original / name).read_text()
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        (world / here).write_text(text)
    text = (world / "template.yaml").read_text()
    (world / "template.yaml").write_text(re.sub(r'data_dir: "\.\."', 'data_dir: "."', text))
    (world / "clips").mkdir()
    (world / "frames").mkdir()
    for name in ("walk", "ballet"):
        anyv2v.write_video(world / "clips" / f"{name}.mp4", frames(), fps=8)
    for name in ("robot", "van-gogh", "dancer"):
        (world / "frames" / f"{name}.png").symlink_to(world / "robot.png")


def benchmark(bench: Path) -> None:
    """A benchmark of one clip and one edit."""
    edit = bench / "walk" / "edits" / "green"
    edit.mkdir(parents=True)
    anyv2v.write_video(bench / "walk" / "clip.mp4", frames(), fps=8)
    Image.open(bench.parent / "green.png").save(edit / "frame.png")
    (edit / "prompt.txt").write_text("a man in a green shirt walking")
    (edit / "instruction.recolour.txt").write_text("purple > green")
