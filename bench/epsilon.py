"""Round trips of the backbones that predict noise, ConsistI2V and SEINE, by small random networks.

Each is inverted with the empty prompt and sampled again in as many steps, without noise. The peer
is the original's way, 500 steps of plain DDIM, sampled in the same steps. `latent_error` is that of
the clean latents, relative; `largest_residual` that of the fixed points, and `at_step` where it is,
0 being the noisiest. The networks are those that the goldens in tests/goldens were made with: what
is measured is the arithmetic of the steps, for which random networks are a hard case.

Before anything is measured, every residual is recomputed through the step of sampling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import anyv2v
from anyv2v.convert.published import convert
from anyv2v.diffusion.schedule import advance
from anyv2v.editor import Editor
from anyv2v.loading import expected_shapes
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth
from bench.core import Bench, Wrong

STEPS = (10, 25, 50)
DDIM = 500
"""Steps of the peer, the original's number."""
SIZE, FRAMES = (128, 64), 4


def writers() -> dict[str, Callable[[Path], object]]:
    """Name of a backbone -> a function that writes its small model in the published form."""
    from tests.oracles import consisti2v_snapshot, seine_snapshot

    return {"consisti2v": consisti2v_snapshot.write, "seine": seine_snapshot.write}


def load(write: Callable[[Path], object], device: str) -> Editor:
    """Convert a small model and load it."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "published")
        convert(Path(folder) / "published", Path(folder) / "weights", expected_shapes)
        return anyv2v.load(Path(folder) / "weights", device=device, dtype=torch.float32)


def options_of(editor: Editor) -> dict[str, object]:
    """Return the options of a sampler that adds no noise."""
    return {"sampler": "ddim"} if editor.backbone.name == "seine" else {}


@torch.no_grad()
def check(editor: Editor, video: anyv2v.Video, source: anyv2v.Source) -> None:
    """Raise Wrong if a residual is not what the step of sampling says."""
    frames, height, width, _ = video.frames.shape
    conditions = editor.condition("", video.frames[0], frames, (width, height))
    p, levels = editor.backbone.pinned_frames, source.trajectory.levels
    latents = source.trajectory.clean[:, :, p:]
    for level, below in list(pairwise(levels))[::-1]:
        stored = source.at(level.index)
        prediction = editor.predict(stored, level.t, conditions)[:, :, p:]
        step = editor.schedule.coefficients(level, below)
        missed = (latents - advance(stored[:, :, p:], prediction, step)) / step.a
        found = (missed.norm() / stored[:, :, p:].norm()).item()
        if abs(found - source.residuals[level.index]) > 1e-6 + 1e-2 * found:
            raise Wrong(f"step {level.index}: residual {found:.3g}, reported {source.residuals}")
        latents = stored[:, :, p:] + missed


def error(editor: Editor, source: anyv2v.Source, steps: int) -> float:
    """Return the relative error of the clean latents after sampling in `steps`."""
    again = editor.reconstruct(source, steps=steps, options=options_of(editor)).latents
    clean: Tensor = source.trajectory.clean
    return ((again - clean).norm() / clean.norm()).item()


def run(bench: Bench) -> None:
    """Measure the subject "epsilon"."""
    truth = Truth.of(draw_edit("colour", "held-out", 0), SIZE, FRAMES)
    video = anyv2v.Video(truth.source, 8)
    for name, write in writers().items():
        editor = load(write, bench.device)
        options = options_of(editor)
        plain = editor.invert(video, "ddim", DDIM, options=options)
        for steps in STEPS:
            case = f"{name}, small random weights, {steps} steps"
            peer = error(editor, plain, steps)
            facts = {"latent_error": float(f"{peer:.4g}")}
            bench.counted(case, f"ddim {DDIM}", True, evaluations=plain.evaluations, facts=facts)
            source = editor.invert(video, steps=steps, options=options)
            check(editor, video, source)
            ours = error(editor, source, steps)
            worst = max(source.residuals, key=lambda index: source.residuals[index])
            facts = {
                "latent_error": float(f"{ours:.4g}"),
                "of_ddim_error": float(f"{ours / peer:.3g}"),
                "largest_residual": float(f"{source.residuals[worst]:.3g}"),
                "at_step": worst,
            }
            bench.counted(case, "fixed-point", evaluations=source.evaluations, facts=facts)
            print(f"  {case}: {source.evaluations} evaluations, {facts}", flush=True)
