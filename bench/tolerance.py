"""How exact an inversion must be: tolerance and budget of the fixed point, and their cost.

    python -m bench.tolerance [--first 0] [--scenes 48] [--settings NAME ...] [-o bench-out]
    python -m bench.tolerance --save

The demo weights and their best settings; held-out scenes that are used for nothing else, with the
six kinds of edits in turn. Each scene is inverted with its caption as prompt, then reconstructed
(round trip: the relative error of the clean latents) and edited (PSNR to the rendered truth,
distance of the sprite from its true place). With plain DDIM only the round trip is measured.

A line of JSON for each scene and setting is appended to tolerance.jsonl at once. What is in that
file is not measured again, so a run may be stopped, continued and extended. Six scenes, one edit of
each kind, run together: on a CPU that halves the time and changes results by rounding only. --save
condenses the lines into bench/results, from where `python bench/report.py` takes its table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import anyv2v
from anyv2v.diffusion.inversion import InversionState, ddim, fixed_point
from anyv2v.diffusion.samplers import Predict, sample
from anyv2v.diffusion.schedule import Level, NoiseSchedule
from anyv2v.editor import Editor
from anyv2v.injection.taps import NO_TAPS, Record, Replay, Taps
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import KINDS, draw_edit
from anyv2v.weights.demo.scores import Truth, scores
from anyv2v.weights.demo.settings import BEST
from bench.core import RESULTS, Bench, circumstances, save
from bench.inversion import TRACKED, interval

FPS = 8
FIRST_SEED = 6_000_000
"""Seed of the first scene; other published figures use seeds below it."""
SCORES = ("psnr", "ssim", "trajectory")
DDIM, BEFORE = "ddim 500", "3e-4, 100"
"""The settings with which the others are compared: for round trips the original's, for edits the
default before this was measured."""
DEFAULT = "3e-3"

Run = Callable[[Predict, InversionState, NoiseSchedule, int], Iterator[InversionState]]
SETTINGS: dict[str, Run] = {
    DDIM: lambda predict, state, schedule, steps: ddim(predict, state, schedule, 500),
    "linear": partial(fixed_point, budget=50),
    "3e-3": partial(fixed_point, tolerance=3e-3),
    "2e-3": partial(fixed_point, tolerance=2e-3),
    "1.5e-3": partial(fixed_point, tolerance=1.5e-3),
    "3e-4, 100": partial(fixed_point, tolerance=3e-4, budget=100, last_factor=1.0),
}


class Clips:
    """Several scenes of one size as a batch, with their conditions."""

    def __init__(self, editor: Editor, scenes: Sequence[int]):
        self.editor, self.scenes = editor, scenes
        size, frames = editor.defaults.size, editor.defaults.frames
        edits = [draw_edit(KINDS[i % len(KINDS)], "held-out", FIRST_SEED + i) for i in scenes]
        self.edits = edits
        self.truths = [Truth.of(edit, size, frames) for edit in edits]
        self.clean = [editor.encode_frames(truth.source) for truth in self.truths]
        self._source, self._edit = (
            [
                editor.condition(caption, clip[0], frames, size, FPS)
                for caption, clip in zip(captions, clips, strict=True)
            ]
            for captions, clips in (
                ([e.source.caption for e in edits], [t.source for t in self.truths]),
                ([e.truth.caption for e in edits], [t.frames for t in self.truths]),
            )
        )

    def predict(
        self, t: float, latents: Mapping[int, Tensor], edit: bool = False, taps: Taps = NO_TAPS
    ) -> dict[int, Tensor]:
        """Predict v (row -> v) for latents (row -> (1, c, f, h, w)) in one batch.

        Row r is of scene r modulo the number of scenes.
        """
        conditions = self._edit if edit else self._source
        conditions = [conditions[row % len(conditions)] for row in latents]
        v = self.editor.predict(
            torch.cat(list(latents.values())), t, type(conditions[0]).stack(conditions), taps
        )
        return dict(zip(latents, v.split(1), strict=True))


def invert_together(
    runs: Sequence[Run], clips: Clips, sites: Mapping[int, frozenset[str]]
) -> list[tuple[InversionState, dict[int, dict]]]:
    """Invert all scenes by all runs; returns the last states and the features of `sites` by step.

    The result is in the order (run, scene). Each inversion has a thread that asks for predictions
    and waits for them. All that ask for the least noisy level are evaluated as one batch, so the
    other threads wait until these have caught up with them.
    """
    schedule, count = clips.editor.schedule, len(clips.scenes)
    jobs = [(run, clean) for run in runs for clean in clips.clean]
    asked: queue.Queue = queue.Queue()
    answers = [queue.Queue() for _ in jobs]
    found: list[tuple[InversionState, dict]] = [None] * len(jobs)
    features: list[dict[int, dict]] = [{} for _ in jobs]

    def work(row: int) -> None:
        def predict(level: Level, latents: Tensor) -> Tensor:
            reached.append(level.identity)
            asked.put((row, level, latents))
            return answers[row].get()

        run, clean = jobs[row]
        reached: list[tuple[float, ...]] = []
        last = schedule.levels(BEST.steps)[0].identity
        try:
            for state in run(predict, InversionState.start(clean), schedule, BEST.steps):
                if reached[-1] == last:
                    found[row] = state, features[row]
                    break
            asked.put((row, None, None))
        except Exception as error:  # or the main thread would wait for it forever
            asked.put((row, None, error))

    for row in range(len(jobs)):
        threading.Thread(target=work, args=(row,), daemon=True).start()
    waiting, alive = {}, count * len(runs)
    while alive:
        while len(waiting) < alive:
            row, level, latents = asked.get()
            if isinstance(latents, Exception):
                raise latents
            if level is None:
                alive -= 1
            else:
                waiting[row] = level, latents
        if not alive:
            break
        now = min((level for level, _ in waiting.values()), key=lambda level: level.t)
        rows = {row: waiting.pop(row)[1] for row in sorted(waiting) if waiting[row][0] == now}
        taps = Record(sites.get(now.index, ()))
        v = clips.predict(now.t, rows, taps=taps)
        for i, row in enumerate(rows):
            # a later evaluation of the level replaces these: the last one is at the kept latents
            features[row][now.index] = {
                s: part(x, i, len(rows)) for s, (x,) in taps.features.items()
            }
            answers[row].put(v[row])
    return found


def part(x: Tensor, i: int, of: int) -> Tensor:
    """Part i of a feature (b f, h, w, c) of `of` clips."""
    return x.chunk(of)[i]


@torch.no_grad()
def measure(clips: Clips, settings: Sequence[str]) -> list[list[dict]]:
    """Measure cost and quality: a list for each setting, with a row for each scene."""
    editor, count = clips.editor, len(clips.scenes)
    schedule, steps = editor.schedule, BEST.steps
    plan = editor.step_plan(steps=steps, injection=BEST.injection)
    sites = {step.level.index: step.sites for step in plan.steps if step.sites}
    edited = settings != [DDIM]
    found = invert_together([SETTINGS[s] for s in settings], clips, sites if edited else {})
    begin = torch.cat([state.trajectory[state.latest] for state, _ in found])

    def back(level: Level, x: Tensor) -> Tensor:
        return torch.cat(list(clips.predict(level.t, dict(enumerate(x.split(1)))).values()))

    def injected(level: Level, x: Tensor) -> Tensor:
        kept, at = [features[level.index] for _, features in found], sites.get(level.index, ())
        replay = Replay({s: (torch.cat([k[s] for k in kept]),) for s in at})
        rows = dict(enumerate(x.split(1)))
        return torch.cat(list(clips.predict(level.t, rows, True, replay).values()))

    again = sample(back, begin, schedule, steps).split(1)
    made = sample(injected, begin, schedule, steps).split(1) if edited else None
    rows = []
    for row, (state, _) in enumerate(found):
        clean, truth = clips.clean[row % count], clips.truths[row % count]
        one = {
            "evaluations": state.evaluations,
            "error": ((again[row] - clean).norm() / clean.norm()).item(),
        }
        if edited:
            scored = scores(editor.decode(made[row]), truth)
            one |= {s: None if math.isnan(scored[s]) else round(scored[s], 5) for s in SCORES}
        rows.append(one)
    return [rows[i : i + count] for i in range(0, len(rows), count)]


def read(path: Path) -> dict[str, dict[int, dict]]:
    """Read the file: setting -> scene -> its row; empty where there is no file."""
    found: dict[str, dict[int, dict]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        found.setdefault(row["setting"], {})[row["scene"]] = row
    return found


def run(args: argparse.Namespace) -> None:
    """Measure the scenes and settings that are not in the file yet."""
    path = args.output / "tolerance.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    editor = anyv2v.load("demo", device="cpu", dtype=torch.float32)
    for first in range(args.first, args.first + args.scenes, len(KINDS)):
        scenes = range(first, min(first + len(KINDS), args.first + args.scenes))
        done = read(path)
        left = [s for s in args.settings if not all(i in done.get(s, {}) for i in scenes)]
        # plain DDIM visits other timesteps, so it shares no batch with the others
        for settings in ([s for s in left if s == DDIM], [s for s in left if s != DDIM]):
            if not settings:
                continue
            began = time.monotonic()
            measured = measure(Clips(editor, scenes), settings)
            with path.open("a", encoding="utf-8") as file:
                for setting, rows in zip(settings, measured, strict=True):
                    for i, row in zip(scenes, rows, strict=True):
                        row = {"scene": i, "kind": KINDS[i % len(KINDS)], "setting": setting} | row
                        file.write(json.dumps(row) + "\n")
            taken = time.monotonic() - began
            print(f"{', '.join(settings)}: scenes {scenes[0]} to {scenes[-1]}, {taken:.0f} s")


def summary(found: dict[str, dict[int, dict]]) -> list[dict]:
    """Make a row for each setting: means over its scenes, differences over shared scenes."""
    rows = []
    for setting, scenes in found.items():
        facts: dict[str, float] = {"scenes": len(scenes)}
        measured = list(scenes.values())
        facts["most_evaluations"] = max(r["evaluations"] for r in measured)
        facts |= spread("latent_error", [r["error"] for r in measured])
        shared = [i for i in scenes if i in found.get(DDIM, {})]
        if setting != DDIM and shared:
            plain = sum(found[DDIM][i]["error"] for i in shared)
            facts["scenes_of_ddim"] = len(shared)
            facts["of_ddim_error"] = sum(scenes[i]["error"] for i in shared) / plain
        if setting != DDIM:
            facts |= spread("edit_db", [r["psnr"] for r in measured])
            tracked = [r["trajectory"] for r in measured if r["kind"] in TRACKED]
            facts |= spread("edit_trajectory_px", tracked)
        base = found.get(BEFORE, {})
        shared = [i for i in scenes if i in base]
        if setting not in (DDIM, BEFORE) and shared:
            facts["scenes_of_difference"] = len(shared)
            facts |= spread("difference_db", [scenes[i]["psnr"] - base[i]["psnr"] for i in shared])
            tracked = [
                scenes[i]["trajectory"] - base[i]["trajectory"]
                for i in shared
                if scenes[i]["kind"] in TRACKED
                and None not in (scenes[i]["trajectory"], base[i]["trajectory"])
            ]
            facts |= spread("difference_px", tracked)
        rows.append(
            {
                "case": "inversion, held-out scenes",
                "implementation": setting + " (default)" * (setting == DEFAULT),
                "peer": False,
                "status": "counted",
                "evaluations": sum(r["evaluations"] for r in measured) / len(measured),
                "facts": {k: float(f"{v:.4g}") for k, v in facts.items() if v == v},
            }
        )
    return rows


def spread(name: str, values: list[float | None]) -> dict[str, float]:
    """Name the mean and the bounds of its 95 % bootstrap interval."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))


def condense(path: Path) -> None:
    """Write all lines to tolerance.csv, and their means to cpu-full.json and .csv."""
    found = read(path)
    found = {
        setting: dict(sorted(found[setting].items())) for setting in SETTINGS if setting in found
    }
    columns = ("setting", "scene", "kind", "evaluations", "error", *SCORES)
    with (
        atomic_path(RESULTS / "tolerance.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for scenes in found.values():
            for row in scenes.values():
                writer.writerow(row | {"error": f"{row['error']:.4g}"})
    bench = Bench("cpu", True, 0.0, torch.float32)
    about = circumstances(bench, "python -m bench.tolerance")
    # leave out the rates of the machine, which were not measured
    about = {k: v for k, v in about.items() if v == v}
    save(RESULTS, "cpu-full", "tolerance", about, summary(found))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    parser.add_argument(
        "--save", action="store_true", help="write what was measured to bench/results"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.save:
        condense(args.output / "tolerance.jsonl")
    else:
        run(args)


if __name__ == "__main__":
    main()
