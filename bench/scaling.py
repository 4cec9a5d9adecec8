"""Cost and memory of an edit against frames, resolution and the number of edits of one source.

Measured: on a CPU the demo weights, 10 steps; on a GPU the published size with random weights, 50.
Operations are counted in the run that is timed, and `anyv2v plan` is asked the same before it.
Predicted by the plan alone: the published size on a GPU of 80 GB, 50 steps, float16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

import anyv2v
from anyv2v.editor import Editor
from anyv2v.pipeline.cost import Plan, predict
from bench.core import Bench, Contender
from bench.edit import job_of, planned
from bench.subjects import Watched, demo, published
from bench.truth import check_network, check_schedule

WITHIN = 0.05
"""Operations counted have to be those predicted, to this part."""


@dataclass(frozen=True)
class Point:
    size: int
    frames: int
    edits: int = 1

    def __str__(self) -> str:
        return f"{self.size}x{self.size}, {self.frames} frames, {self.edits} edits"


def points(
    base: Point, sizes: tuple[int, ...], frames: tuple[int, ...], edits: tuple[int, ...]
) -> list[Point]:
    """Along each axis from the base, which is on all of them."""
    found = [replace(base, frames=n) for n in frames]
    found += [replace(base, size=n) for n in sizes]
    found += [replace(base, edits=n) for n in edits]
    return list(dict.fromkeys(found))


DEMO = points(Point(32, 8), (32, 64), (8, 16, 32), (1, 2, 4))
DEMO_FULL = points(Point(32, 8), (32, 64, 128), (8, 16, 32, 64), (1, 2, 4, 8))
PUBLISHED = points(Point(512, 16), (256, 384, 512, 640, 768), (8, 16, 24, 32, 48, 64), (1, 2, 4, 8))
PUBLISHED_FEW = points(Point(512, 16), (256, 512, 768), (8, 16, 32, 64), (1, 4, 8))


def run(bench: Bench) -> None:
    editor = (published if bench.cuda else demo)(bench.device)
    size, frames = editor.defaults.size, editor.defaults.frames
    check_schedule(editor.schedule)
    clip = job_of(bench, size, frames).video
    check_network(editor, clip, 5e-2 if bench.cuda else 1e-5)
    few = PUBLISHED_FEW if bench.cuda else DEMO
    all_ = PUBLISHED if bench.cuda else DEMO_FULL
    for point in all_ if bench.full else few:
        measured(bench, editor, point, 50 if bench.cuda else 10)
    for point in PUBLISHED if bench.full else PUBLISHED_FEW:
        plan = planned(point.size, point.frames, point.edits)
        bench.predicted(
            f"published size, {point}",
            "anyv2v",
            evaluations=plan.inversion_evaluations + plan.sampling_rows,
            tflop=plan.total / 1e12,
            peak_mb=(plan.peak - plan.weights) / 1e6,
            facts=vars(point) | {"steps": 50},
        )
        print(f"published size, {point}: {plan.total / 1e12:.0f} TFLOP, {plan.peak / 1e9:.1f} GB")


def measured(bench: Bench, editor: Editor, point: Point, steps: int) -> None:
    watched = Watched(editor)
    job = job_of(bench, (point.size, point.size), point.frames)
    wanted = [anyv2v.EditRequest(job.frame, job.prompt)] * point.edits
    plan = editor.step_plan(steps)
    inverted: list[int] = []

    def edit() -> list[torch.Tensor]:
        watched.clear()
        run, video = watched.editor, job.video
        recording = run.recording(video, steps=steps)
        source = run.invert(video, steps=steps, plan=plan, recording=recording)
        inverted.append(source.evaluations)
        return [e.latents for e in run.edit_many(source, wanted, steps)]

    @cache
    def told(evaluations: int) -> Plan:
        options = {"inversion_steps": steps, "evaluations": evaluations}
        return predict(editor, job.video, point.edits, steps, **options)

    def error(way: str, out: list[torch.Tensor]) -> float:
        """By how much the operations miss the plan; infinite if the edits are not one."""
        finite = all(x.isfinite().all() for x in out)
        same = all(torch.allclose(x, out[0], rtol=1e-2, atol=1e-2) for x in out)
        # the towers are not watched, and take next to nothing
        foretold = told(inverted[-1])
        counted, expected = watched.flops, foretold.total - foretold.flops["conditions"]
        return abs(counted / expected - 1) if finite and same else float("inf")

    def facts(way: str) -> dict:
        foretold = told(inverted[-1])
        return vars(point) | {
            "steps": steps,
            "predicted_tflop": (foretold.total - foretold.flops["conditions"]) / 1e12,
            "predicted_mb": (foretold.peak - foretold.weights) / 1e6,
        }

    name = "published size" if bench.cuda else "demo weights"
    bench.case(
        f"{name}, {point}",
        [
            Contender(
                "anyv2v",
                edit,
                evaluations=lambda: watched.evaluations,
                flops=lambda: watched.flops,
            )
        ],
        error,
        WITHIN,
        least=1 if bench.cuda else 2,
        long=True,
        facts=facts,
    )
