"""Cost and memory of an edit against frames, resolution and the number of edits of one source.

Measured: on a CPU the demo weights, 10 steps; on a GPU random weights of the published size, 50
steps. Operations are counted in the run that is timed, and compared with those that `anyv2v plan`
predicts. Predicted alone: the published size on a GPU of 80 GB, 50 steps, float16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

import anyv2v
from anyv2v.editor import Editor
from anyv2v.pipeline.cost import EditCost, predict_cost
from bench.core import Bench, Contender
from bench.edit import job_of, planned
from bench.subjects import Watched, demo, published
from bench.truth import check_network, check_schedule

WITHIN = 0.05
"""Relative difference allowed between the operations counted and those predicted."""


@dataclass(frozen=True)
class Point:
    """The size of one measurement: side of the frames in pixels, frames, edits of one source."""

    size: int
    frames: int
    edits: int = 1

    def __str__(self) -> str:
        return f"{self.size}x{self.size}, {self.frames} frames, {self.edits} edits"


def points(
    base: Point, sizes: tuple[int, ...], frames: tuple[int, ...], edits: tuple[int, ...]
) -> list[Point]:
    """List the points that differ from the base along one axis, and the base itself."""
    result = [replace(base, frames=n) for n in frames]
    result += [replace(base, size=n) for n in sizes]
    result += [replace(base, edits=n) for n in edits]
    return list(dict.fromkeys(result))


DEMO = points(Point(32, 8), (32, 64), (8, 16, 32), (1, 2, 4))
DEMO_FULL = points(Point(32, 8), (32, 64, 128), (8, 16, 32, 64), (1, 2, 4, 8))
PUBLISHED = points(Point(512, 16), (256, 384, 512, 640, 768), (8, 16, 24, 32, 48, 64), (1, 2, 4, 8))
PUBLISHED_FEW = points(Point(512, 16), (256, 512, 768), (8, 16, 32, 64), (1, 4, 8))


def run(bench: Bench) -> None:
    """Measure the subject "scaling"."""
    editor = (published if bench.cuda else demo)(bench.device)
    size, frames = editor.defaults.size, editor.defaults.frames
    check_schedule(editor.schedule)
    clip = job_of(bench, size, frames).video
    check_network(editor, clip, 5e-2 if bench.cuda else 1e-5)
    few = PUBLISHED_FEW if bench.cuda else DEMO
    all_ = PUBLISHED if bench.cuda else DEMO_FULL
    for point in all_ if bench.full else few:
        measure(bench, editor, point, 50 if bench.cuda else 10)
    for point in PUBLISHED if bench.full else PUBLISHED_FEW:
        plan = planned(point.size, point.frames, point.edits)
        bench.predicted(
            f"published size, {point}",
            "anyv2v",
            evaluations=plan.inversion_evaluations + plan.sampling_branches,
            tflop=plan.total / 1e12,
            peak_mb=(plan.peak - plan.weights) / 1e6,
            facts=vars(point) | {"steps": 50},
        )
        print(f"published size, {point}: {plan.total / 1e12:.0f} TFLOP, {plan.peak / 1e9:.1f} GB")


def measure(bench: Bench, editor: Editor, point: Point, steps: int) -> None:
    """Run, check and time one point."""
    watched = Watched(editor)
    job = job_of(bench, (point.size, point.size), point.frames)
    requests = [anyv2v.EditRequest(job.frame, job.prompt)] * point.edits
    plan = editor.step_plan(steps)
    inverted: list[int] = []

    def edit() -> list[torch.Tensor]:
        watched.clear()
        run, video = watched.editor, job.video
        recording = run.recording(video, steps=steps)
        source = run.invert(video, steps=steps, plan=plan, recording=recording)
        inverted.append(source.evaluations)
        return [e.latents for e in run.edit_many(source, requests, steps)]

    @cache
    def predicted(evaluations: int) -> EditCost:
        options = {"inversion_steps": steps, "evaluations": evaluations}
        return predict_cost(editor, job.video, point.edits, steps, **options)

    def error(way: str, out: list[torch.Tensor]) -> float:
        """Relative error of the predicted operations; infinite if the edits are not the same."""
        finite = all(x.isfinite().all() for x in out)
        same = all(torch.allclose(x, out[0], rtol=1e-2, atol=1e-2) for x in out)
        # the text and image towers are not counted; they take next to nothing
        cost = predicted(inverted[-1])
        counted, expected = watched.flops, cost.total - cost.flops["conditions"]
        return abs(counted / expected - 1) if finite and same else float("inf")

    def facts(way: str) -> dict:
        cost = predicted(inverted[-1])
        return vars(point) | {
            "steps": steps,
            "predicted_tflop": (cost.total - cost.flops["conditions"]) / 1e12,
            "predicted_mb": (cost.peak - cost.weights) / 1e6,
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
