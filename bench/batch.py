"""How much faster a batch is by two processes, by Ray, and by inverting each clip once.

    python bench/batch.py [--clips 6] [--edits 3] [--steps 10] [--workers 2] [--rounds 3] [--ray]

Clips are held-out scenes of the demo weights. The ways to do the same batch, each by a fresh
`anyv2v batch` into an empty folder, one after the other in each round:

one         one process
workers     --workers processes, each with one thread on the CPU
ray         as many actors of Ray
each        one process, with a job file in which each edit is a clip of its own

First it is checked that all ways give the same latents of each edit, to the bit, and each edit
once; otherwise nothing is told of times. `seconds` is the whole command; `working` is what is left
without the start: from the first edit that is done to the last one, per edit. Ratios are of medians
over the rounds. Prints a table and writes batch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

import anyv2v
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_edit

FIRST = 8_000_000
"""Number of the first scene in the held-out split; other measurements take other ones."""
FRAMES, SIZE = 8, (32, 32)
CHANGED = ("colour", "texture", "background", "shape")
"""What edits change in turn: kinds for which the scene stays as it is drawn."""


def write_jobs(folder: Path, clips: int, edits: int, steps: int) -> list[str]:
    """Write clips, edited first frames and the two job files; return the outputs."""
    outputs, together, apart = [], [], []
    for i in range(clips):
        own = [draw_edit(CHANGED[j % len(CHANGED)], "held-out", FIRST + i) for j in range(edits)]
        scenes = [own[0].source, *(edit.truth for edit in own)]
        source, *truths = render(scenes, SIZE, FRAMES).frames.numpy()
        anyv2v.write_video(folder / f"clip{i}.mp4", source, fps=8)
        for j, edit in enumerate(own):
            Image.fromarray(truths[j][0]).save(folder / f"{i}-{j}.png")
            output = f"clip{i}/{j}.mp4"
            told = {"frame": f"{i}-{j}.png", "prompt": edit.truth.caption, "output": output}
            told |= {"steps": steps, "video": f"clip{i}.mp4"}
            outputs.append(output)
            together.append(told)
            # another name of the same file
            shutil.copy(folder / f"clip{i}.mp4", folder / f"clip{i}-{j}.mp4")
            apart.append(told | {"video": f"clip{i}-{j}.mp4"})
    for name, jobs in (("together.jsonl", together), ("apart.jsonl", apart)):
        (folder / name).write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return outputs


def run(folder: Path, name: str, words: list[str]) -> dict[str, float]:
    """Do the batch in one way into an empty folder; return its times in seconds."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "anyv2v", "batch", *words, "-o", name, "-q"]
    began = time.monotonic()
    subprocess.run(
        [*command, "--device", "cpu"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began
    ends = sorted(line["time"] for line in lines(out))
    return {"seconds": seconds, "working": (ends[-1] - ends[0]) / (len(ends) - 1)}


def lines(out: Path) -> list[dict]:
    """The lines of the edits that were made."""
    return [json.loads(line) for line in (out / "done.jsonl").read_text().splitlines()]


def check(folder: Path, ways: dict[str, list[str]], outputs: list[str]) -> None:
    """Raise AssertionError unless all ways made the same latents, and each edit once."""
    for name in ways:
        made = sorted(line["output"] for line in lines(folder / name))
        assert made == sorted(outputs), f"{name}: made {made}"
        for output in outputs:
            hashes = [
                json.loads((folder / way / f"{output}.json").read_text())["latents_sha256"]
                for way in ("one", name)
            ]
            assert hashes[0] == hashes[1], f"{name}: {output} has other latents"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--edits", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    folder = args.output.absolute() / "batch"
    folder.mkdir(parents=True, exist_ok=True)
    outputs = write_jobs(folder, args.clips, args.edits, args.steps)
    workers = ["--workers", str(args.workers)]
    ways = {"one": ["together.jsonl"], "workers": ["together.jsonl", *workers]}
    if args.ray:
        ways["ray"] = ["together.jsonl", *workers, "--engine", "ray"]
    ways["each"] = ["apart.jsonl"]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for index in range(args.rounds):
        for name, words in ways.items():
            rounds[name].append(run(folder, name, words))
        if index == 0:
            check(folder, ways, outputs)
    medians = {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for name, each in rounds.items()
    }
    for name, found in medians.items():
        ratios = [f"{medians['one'][key] / found[key]:.2f}" for key in ("seconds", "working")]
        print(
            f"{name:8} {found['seconds']:7.1f} s, {found['working']:6.2f} s per edit when working; "
            f"{ratios[0]} and {ratios[1]} times as fast as one"
        )
    facts = {**vars(args), "output": "", "cpus": os.cpu_count(), "rounds": rounds}
    (args.output / "batch.json").write_text(json.dumps(facts | {"medians": medians}, indent=1))


if __name__ == "__main__":
    main()
