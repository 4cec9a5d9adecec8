"""What each method and each editor of the first frame costs, on ten scenes with known edits.

    python -m bench.compare [-o bench-out/compare] [--scenes 10]
    python -m bench.compare --save

Renders scenes that neither training nor another study has seen as a benchmark, OUT/bench, and runs
`anyv2v compare` on it with the demo weights into OUT/compare; a run that ended early is run again.
All kinds of edits take turns. The editors of the first frame are the truth's own frame, `recolour`
where one color becomes another, and `palette` where colors change, told by the truth's last frame.
--save writes the scores of every cell to results/compare.csv, the means to results/cpu-full.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anyv2v.cli.main import main as anyv2v
from anyv2v.media.video import write_video
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import BACKGROUND_COLORS, COLORS, KINDS, SceneEdit, draw_edit
from anyv2v.weights.demo.scores import Truth
from bench.core import RESULTS, Bench, circumstances, save

FIRST, SCENES = 8_000_000, 10
"""Number of the first scene among the held-out ones, and how many there are."""
SIZE, FRAMES, FPS = (32, 32), 8, 8
EDITORS = ("true", "palette", "recolour")
METHODS = ("ours", "plain", "paper", "guided-protected")
METHODS += ("copy", "difference", "warp", "static", "source")
"""The first ones are compared with all others."""
RECOLORED = ("colour", "background")
"""Kinds of edits that change one color into another."""
REPAINTED = (*RECOLORED, "style")
"""Kinds of edits that change colors, which a reference can show."""


def write_benchmark(folder: Path, scenes: int = SCENES) -> None:
    """Write scenes and their edits as `anyv2v.comparison.benchmark` reads them."""
    for i, (kind, edit) in enumerate(drawn(scenes)):
        truth = Truth.of(edit, SIZE, FRAMES)
        clip = folder / f"{i:02}-{kind}"
        wanted = clip / "edits" / kind
        for path, frames in ((clip / "clip", truth.source), (wanted / "truth", truth.frames)):
            path.mkdir(parents=True, exist_ok=True)
            write_video(path / "%05d.png", frames, FPS)
        write_text(clip / "caption.txt", edit.source.caption)
        write_text(wanted / "prompt.txt", edit.truth.caption)
        if kind in REPAINTED:
            # the wanted colors, elsewhere than in the first frame
            Image.fromarray(np.array(truth.frames[-1])).save(wanted / "reference.png")
        if kind in RECOLORED:
            write_text(wanted / "instruction.txt", recoloring(kind, edit))


def drawn(scenes: int) -> Iterator[tuple[str, SceneEdit]]:
    """Draw edits; those of colors are of scenes in natural colors, which are as they are called."""
    number = FIRST
    for i in range(scenes):
        kind = KINDS[i % len(KINDS)]
        edit = draw_edit(kind, "held-out", number)
        while kind in RECOLORED and edit.source.style != "natural":
            number += 1
            edit = draw_edit(kind, "held-out", number)
        number += 1
        yield kind, edit


def recoloring(kind: str, edit: SceneEdit) -> str:
    """Say which color becomes which, in the words of `recolour`."""
    scenes = edit.source, edit.truth
    if kind == "background":
        colors = [BACKGROUND_COLORS[scene.background.color] for scene in scenes]
    else:
        colors = [COLORS[scene.sprites[edit.sprite].color] for scene in scenes]
    return " > ".join("#" + bytes(round(255 * x) for x in color).hex() for color in colors)


def write_text(path: Path, text: str) -> None:
    """Write a text as a line."""
    path.write_text(f"{text}\n", encoding="utf-8")


def command(folder: Path) -> list[str]:
    """The command line of the comparison, after "anyv2v"."""
    words = ["compare", str(folder / "bench"), "-o", str(folder / "compare"), "--star"]
    return [*words, "--editors", ",".join(EDITORS), "--methods", ",".join(METHODS)]


def condense(scores: dict) -> list[dict]:
    """Make a row of results for each editor with each method: means, differences, intervals."""
    rows = []
    for row in scores["rows"]:
        facts: dict[str, float] = {"edits": row["edits"]}
        for part, ending in PARTS.items():
            for metric, mean in row[part].items():
                name = metric.partition("[")[0] + ending
                facts |= {name: mean["mean"], f"{name}_low": mean["low"]}
                facts[f"{name}_high"] = mean["high"]
        rows.append(
            {
                "case": f"first frame: {row['editor']}",
                "implementation": row["method"],
                "peer": False,
                "status": "counted",
                "facts": {k: float(f"{v:.4g}") for k, v in facts.items() if v is not None},
            }
        )
    return rows


PARTS = {"means": "", "over_method": "_over_method", "over_editor": "_over_editor"}
"""Part of a row of scores.json -> what it adds to the names of facts."""


def keep(folder: Path) -> None:
    """Write what was found to bench/results."""
    found = folder / "compare"
    with atomic_path(RESULTS / "compare.csv") as temporary:
        temporary.write_text((found / "scores.csv").read_text(encoding="utf-8"), encoding="utf-8")
    scores = json.loads((found / "scores.json").read_text(encoding="utf-8"))
    about = circumstances(Bench("cpu", True, 0.0, torch.float32), "python -m bench.compare")
    # leave out the rates of the machine, which were not measured
    about = {k: v for k, v in about.items() if v == v}
    save(RESULTS, "cpu-full", "compare", about, condense(scores))


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out/compare"))
    parser.add_argument("--save", action="store_true", help="keep what was found in bench/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.save:
        keep(args.output)
        return 0
    write_benchmark(args.output / "bench", args.scenes)
    return anyv2v(command(args.output))


if __name__ == "__main__":
    sys.exit(main())
