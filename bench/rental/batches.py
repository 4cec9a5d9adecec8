"""U3: a batch by one process and by two on one GPU. U4: a whole CLIP on the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anyv2v.clip.model import CLIPModel, TextEmbedder
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.text import TextConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth
from bench.core import ROOT
from bench.counted import TEXT, VISION
from bench.rental.lab import Lab, Times
from bench.truth import relative
from bench.unet import draw

CLIPS, EDITS = 6, 2
"""Number of clips of the batch, and of edits of each."""
SIZE, FRAMES = (32, 32), 8
EXACT = {torch.float32: 1e-3, torch.float16: 2e-2}
"""Relative error allowed to embeddings, in which float16, and TF32 in convolutions, lose digits."""


def batch(lab: Lab) -> None:
    """U3: time `anyv2v batch` on the demo weights, and compare the latents of all runs."""
    clips = 2 if lab.dry else CLIPS
    with tempfile.TemporaryDirectory() as folder:
        steps = 2 if lab.dry else 50
        jobs = write_jobs(Path(folder), clips, steps)
        found: dict[str, dict[str, str]] = {}
        for workers in (1, 2):
            out = Path(folder) / f"workers-{workers}"
            begin = lab.stopwatch()
            done = anyv2v("batch", str(jobs), "-o", str(out), "--workers", str(workers))
            seconds = lab.stopwatch() - begin
            sidecars = sorted(out.rglob("edit.json"))
            name = f"{workers} processes, with their start"
            found[name] = {
                str(path.relative_to(out)): json.loads(path.read_text())["latents_sha256"]
                for path in sidecars
            }
            lines = [json.loads(x) for x in (out / "done.jsonl").read_text().splitlines()]
            same = found[name] == next(iter(found.values()))
            right = done.returncode == 0 and len(sidecars) == clips * EDITS and same
            lab.fact(
                f"a batch of {clips} clips with {EDITS} edits, demo weights",
                name,
                "ok" if right else "wrong",
                times=Times(seconds, seconds, seconds, 1),
                pids=len({line["pid"] for line in lines}),
                edits_s=sum(line["seconds"] for line in lines),
                reason=None if right else (done.stderr or done.stdout)[-300:],
                headline=True,
            )
        alone = Path(folder) / "alone"
        alone.mkdir()
        picture = str(Path(folder) / "0/edited-0.png")
        given = [str(Path(folder) / "0/clip"), "--frame", picture, "--prompt", "a red circle"]
        given += ["--steps", str(steps)]
        done = anyv2v("edit", *given, "-o", str(alone / "%05d.png"))
        made = json.loads((alone / "edit.json").read_text())["latents_sha256"]
        same = made == found[next(iter(found))]["0/0/edit.json"]
        lab.fact(
            "anyv2v edit beside anyv2v batch",
            "the same latents, to the bit" if same else "other latents",
            "ok" if same and done.returncode == 0 else "wrong",
            headline=True,
        )


def anyv2v(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command of anyv2v."""
    return subprocess.run(
        [sys.executable, "-m", "anyv2v", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def write_jobs(folder: Path, clips: int, steps: int) -> Path:
    """Write clips as pictures, which need no PyAV, and the file of their edits; return its path."""
    lines = []
    for i in range(clips):
        edit = draw_edit("colour", "held-out", 8_000_000 + i)
        truth = Truth.of(edit, SIZE, FRAMES)
        (folder / f"{i}/clip").mkdir(parents=True)
        for k, picture in enumerate(truth.source):
            Image.fromarray(picture).save(folder / f"{i}/clip/{k:05d}.png")
        edits = []
        for k in range(EDITS):
            # the second edit mirrors the colors of the first
            frame = truth.frames[0] if k == 0 else truth.frames[0][..., ::-1]
            Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"{i}/edited-{k}.png")
            output = f"{i}/{k}/%05d.png"
            told = {"frame": f"{i}/edited-{k}.png", "prompt": "a red circle", "output": output}
            edits.append(told)
        lines.append(json.dumps({"video": f"{i}/clip", "steps": steps, "edits": edits}))
    jobs = folder / "jobs.jsonl"
    jobs.write_text("\n".join(lines) + "\n")
    return jobs


@torch.no_grad()
def clip(lab: Lab) -> None:
    """U4: compare embeddings of a CLIP of the size of ViT-H/14 with those of a CPU, and time it."""
    config, text = VISION, TEXT
    if lab.dry:
        config = VisionConfig(28, 14, 32, 2, 2, 64, "gelu", 1e-5, 16)
        text = replace(TEXT, hidden_size=32, heads=2, layers=2, intermediate_size=64)
    pictures = np.random.default_rng(0).integers(256, size=(16, 64, 64, 3), dtype=np.uint8)
    pictures = pictures.repeat(4, axis=1).repeat(4, axis=2)
    on_cpu = random_clip(config, text, "cpu", torch.float32)
    few = pictures[:2]
    truth = on_cpu.encode_images(few), on_cpu.encode_text(["a red circle", ""])
    for dtype in dict.fromkeys((torch.float32, lab.dtype)):
        model = random_clip(config, text, lab.device, dtype)
        ours = model.encode_images(few), model.encode_text(["a red circle", ""])
        errors = [relative(a.cpu(), b) for a, b in zip(ours, truth, strict=True)]
        right = max(errors) <= EXACT[dtype]
        lab.fact(
            "a CLIP of the size of ViT-H/14",
            f"16 frames of 256x256, {str(dtype).removeprefix('torch.')}",
            "ok" if right else "wrong",
            times=lab.clock(lambda model=model: model.encode_images(pictures)),
            error=errors[0],
            error_of_texts=errors[1],
            headline=True,
        )


def random_clip(
    config: VisionConfig, text: TextConfig, device: str, dtype: torch.dtype
) -> CLIPModel:
    """Make a CLIP with the same random weights on any device."""
    networks = VisionEncoder(config), TextEmbedder(text, config.projection_dim)
    for network in networks:
        draw(network)
        network.eval().requires_grad_(False).to(device, dtype)
    vision, texts = networks
    plain = PreprocessConfig(config.image_size, (0.5,) * 3, (0.5,) * 3)
    return CLIPModel("random", "", vision, plain, texts, Words())


class Words:
    """Stands for a tokenizer: the codes of the letters, and an end."""

    end = 49407

    def __call__(self, words: str) -> torch.Tensor:
        ids = [ord(letter) for letter in words] + [self.end] * (77 - len(words))
        return torch.tensor([ids])
