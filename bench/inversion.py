"""Errors of inversion methods at equal numbers of evaluations, and of the edits that follow.

On the demo weights, held-out clips, each kind of edit in turn, guidance 1, sampling with 50 steps.
Round trip: inverted with the empty prompt, then reconstructed from the noisiest timestep of
sampling; the latent error is relative to the clean latents. Edit: inverted with the prompt that the
demo's best settings give the inversion, then edited with its best injection. Small set: the methods
that docs/benchmarks.md names; full: all.

Before anything is measured the product is checked: the residuals that its fixed point reports are
recomputed through the steps of sampling, and the evaluations that it reports are counted.

Methods that are measured:
- ddim: plain DDIM inversion (arXiv 2105.05233, appendix F). Only numbers of steps whose timesteps
  include those of sampling can be read by it, so 200 stands where one would ask for 150. None
  evaluates beyond the noisiest timestep of sampling: 500 steps are 491 evaluations.
- fixed-point: the product's default, and at other tolerances and budgets.
- linear: the same with one evaluation a step, at the point extrapolated from the last two v.
- videoshop (arXiv 2403.14617): one evaluation a step too, but extrapolated otherwise: along the
  straight line, in noise level sigma, from the clean latents through the current ones. Below
  sigma 1, where that line is short, its authors put noise drawn at random in place of it, and so
  does this. Their normalization of latents belongs to another autoencoder and is left out.
- plain: the fixed point iterated without acceleration and from the latents of the step before
  (arXiv 2309.04907), what is kept being the last iterate.
- renoise: the same, but the step is taken with the mean of predictions (arXiv 2403.14602): of all
  below t = 250, of the last two above, as its authors have it. Their losses that make noise
  editable, and their correction of noise for samplers that add some, are left out.

Methods that are not measured, and why:
- EDICT (arXiv 2211.12446), BDIA (2307.10829), O-BELM (2410.07273) are exact because their samplers
  carry two states: EDICT two coupled copies, at two evaluations a step each way, the others
  x at two timesteps, linearly. So the edit would have to be sampled by them, no longer by DDIM. And
  exact they are only if the way back predicts what the way there did: under another first frame,
  guidance and injected features the pair of states no longer belongs together.
- GNRI (2312.12540) follows the derivative of the residual with respect to the latents. Through the
  network, as its paper writes it, that takes a backward pass (about two evaluations more) and all
  activations kept; the code of its authors leaves the network out of the derivative. Its guidance
  term pulls the iterate to where noise is likely, away from the solution of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import anyv2v
from anyv2v.diffusion.inversion import TOLERANCE, InversionState, ddim, fixed_point
from anyv2v.diffusion.samplers import Predict
from anyv2v.diffusion.schedule import Level, NoiseSchedule, match_levels
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.editor import Editor
from anyv2v.media.psnr import psnr
from anyv2v.pipeline.source import InversionSettings
from anyv2v.weights.demo.scenes import KINDS, SceneEdit, draw_edit
from anyv2v.weights.demo.scores import Truth, scores
from anyv2v.weights.demo.settings import BEST
from bench.core import Bench, Wrong
from bench.subjects import demo
from bench.truth import check_network, check_schedule

STEPS = 50
"""Steps of sampling, and of every method but ddim."""
FPS = 8
CLIPS = 4
TRACKED = ("colour", "background")
"""Kinds of edits whose sprite can be followed with confidence."""


@dataclass(frozen=True)
class Method:
    """An inversion method: its name, its number of steps, and the function that runs it."""

    name: str
    steps: int
    run: Callable[[Predict, InversionState, NoiseSchedule, int], Iterator[InversionState]]


def plain(
    predict: Predict, state: InversionState, schedule: NoiseSchedule, steps: int, evaluations: int
) -> Iterator[InversionState]:
    """Iterate the fixed point of each step a fixed number of times, from the less noisy latents."""
    for level, below in _upwards(schedule, steps):
        x = state.latents
        for _ in range(evaluations):
            x = solved(schedule, predict(level, x), level, below, state.latents)
        state = _after(state, level, x, evaluations)
        yield state


def renoise(
    predict: Predict, state: InversionState, schedule: NoiseSchedule, steps: int, evaluations: int
) -> Iterator[InversionState]:
    """Like `plain`, but step with the mean of the predictions: of all, or of the last two."""
    for level, below in _upwards(schedule, steps):
        x, predictions = state.latents, []
        for _ in range(evaluations):
            predictions.append(predict(level, x))
            x = solved(schedule, predictions[-1], level, below, state.latents)
        averaged = predictions if level.t < 250 else predictions[-2:]
        x = solved(schedule, torch.stack(averaged).mean(0), level, below, state.latents)
        state = _after(state, level, x, evaluations)
        yield state


def videoshop(
    predict: Predict, state: InversionState, schedule: NoiseSchedule, steps: int
) -> Iterator[InversionState]:
    """Evaluate once per step, on the line from the clean latents through the current ones."""
    clean = state.clean
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    noise = noise * clean.std()
    for level, below in _upwards(schedule, steps):
        sigma_below, sigma = (x.sigma / x.alpha for x in (below, level))
        if sigma_below > 1:
            noise = (state.latents / below.alpha - clean) / sigma_below
        v = predict(level, level.alpha * (clean + sigma * noise))
        state = _after(state, level, solved(schedule, v, level, below, state.latents), 1)
        yield state


def solved(
    schedule: NoiseSchedule, v: Tensor, level: Level, below: Level, latents: Tensor
) -> Tensor:
    """Solve the step of sampling from `level` to `below` for its input, given its prediction v."""
    a, b, _ = schedule.coefficients(level, below)
    return (latents - b * v) / a


def _upwards(schedule: NoiseSchedule, steps: int) -> list[tuple[Level, Level]]:
    """Pairs of a level and the next less noisy one, the least noisy pair first."""
    return list(pairwise(schedule.levels(steps)))[::-1]


def _after(
    state: InversionState, level: Level, latents: Tensor, evaluations: int
) -> InversionState:
    trajectory, spent = {**state.trajectory, level.index: latents}, state.evaluations + evaluations
    return replace(state, trajectory=trajectory, latents=latents, evaluations=spent)


METHODS = (
    *(Method(f"ddim {steps}", steps, ddim) for steps in (50, 100, 200, 500)),
    Method("videoshop", STEPS, videoshop),
    Method("linear", STEPS, partial(fixed_point, budget=STEPS)),
    Method("fixed-point 60", STEPS, partial(fixed_point, tolerance=3e-3, budget=60)),
    Method("fixed-point 75 (default)", STEPS, fixed_point),
    Method("fixed-point 150", STEPS, partial(fixed_point, tolerance=3e-5, budget=150)),
    *(Method(f"plain x{n}", STEPS, partial(plain, evaluations=n)) for n in (2, 3)),
    *(Method(f"renoise x{n}", STEPS, partial(renoise, evaluations=n)) for n in (2, 3)),
)

FEW = ("ddim 50", "ddim 100", "ddim 500", "linear", "fixed-point 75 (default)", "fixed-point 150")


@torch.no_grad()
def invert(
    editor: Editor,
    method: Method,
    video: anyv2v.Video,
    clean: Tensor,
    prompt: str,
    steps: int,
) -> tuple[anyv2v.Source, InversionState, int]:
    """Invert a video; returns the source, the method's last state, and the evaluations counted.

    steps: of the sampling for which the source is made.
    """
    frames, height, width, _ = video.frames.shape
    conditions = editor.condition(prompt, video.frames[0], frames, (width, height), FPS)
    calls, levels = 0, editor.schedule.levels(method.steps)
    read = match_levels(editor.schedule.levels(steps)[:-1], levels[:-1])

    def predict(level: Level, latents: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return editor.predict(latents, level.t, conditions)

    begin = InversionState.start(clean)
    for state in method.run(predict, begin, editor.schedule, method.steps):
        if state.latest == read[0]:
            break
    source = anyv2v.Source(
        video=video,
        trajectory=Trajectory(clean, {i: state.trajectory[i] for i in read.values()}, levels),
        evaluations=calls,
        settings=InversionSettings(
            method.name, method.steps, prompt, "", {"text": 1.0}, {"fps": FPS}, TOLERANCE
        ),
        fingerprint=editor.fingerprint,
        residuals=state.residuals,
    )
    return source, state, calls


@torch.no_grad()
def check(editor: Editor, video: anyv2v.Video, steps: int) -> list[str]:
    """List what is wrong with `editor.invert`: each step of its fixed point is recomputed."""
    faults, schedule = [], editor.schedule
    source = editor.invert(video, "fixed-point", steps)
    frames, height, width, _ = video.frames.shape
    conditions = editor.condition("", video.frames[0], frames, (width, height), FPS)
    latents = source.trajectory.clean
    for level, below in _upwards(schedule, steps):
        kept, t = source.at(level.index), level.t
        down = schedule.step(editor.predict(kept, t, conditions), t, kept, steps)
        # by how much the solution for this v differs from the latents that v is of
        off = (latents - down) / schedule.coefficients(level, below).a
        found, reported = (off.norm() / kept.norm()).item(), source.residuals[level.index]
        if abs(found - reported) > 1e-6 + 1e-2 * reported:
            faults.append(f"t = {t}: residual {found:.3g}, reported {reported:.3g}")
        latents = kept + off
    method = Method("fixed-point", steps, fixed_point)
    same, _, calls = invert(editor, method, video, source.trajectory.clean, "", steps)
    if calls != source.evaluations:
        faults.append(f"{source.evaluations} evaluations reported, {calls} counted")
    for t, latents in same.trajectory.items():
        if not torch.allclose(latents, source.trajectory[t], rtol=1e-5, atol=1e-5):
            faults.append(f"t = {t}: this script's loop is not the editor's")
    return faults


def measure(editor: Editor, method: Method, edit: SceneEdit, frames: int) -> dict[str, float]:
    """Measure evaluations, the round trip and the edit of one clip."""
    truth = Truth.of(edit, editor.defaults.size, frames)
    video = anyv2v.Video(truth.source, FPS)
    clean = editor.encode_frames(video.frames)

    source, state, calls = invert(editor, method, video, clean, "", STEPS)
    if calls != state.evaluations:
        raise Wrong(f"{method.name}: {state.evaluations} reported, {calls} counted")
    again = editor.reconstruct(source, steps=STEPS)
    found = {
        "evaluations": calls,
        "error": ((again.latents - clean).norm() / clean.norm()).item(),
        "reconstruction": psnr(again.frames, video.frames),
    }
    source, _, _ = invert(editor, method, video, clean, edit.source.caption, STEPS)
    made = editor.edit(
        source,
        truth.frames[0],
        edit.truth.caption,
        negative_prompt="",
        steps=STEPS,
        guidance=BEST.guidance,
        injection=BEST.injection,
    )
    # JSON has no NaN
    scored = {k: None if math.isnan(x) else x for k, x in scores(made.frames, truth).items()}
    return found | scored


def run(bench: Bench) -> None:
    """Measure the subject "inversion"."""
    editor = demo(bench.device)
    methods = [m for m in METHODS if bench.full or m.name in FEW]
    check_schedule(editor.schedule)
    first = Truth.of(
        draw_edit(KINDS[0], "validation", 0), editor.defaults.size, editor.defaults.frames
    )
    video = anyv2v.Video(first.source, FPS)
    check_network(editor, video, 1e-5)
    if faults := check(editor, video, STEPS):
        raise Wrong("; ".join(faults))
    for method in methods:
        found = []
        for i in range(CLIPS):
            edit = draw_edit(KINDS[i % len(KINDS)], "held-out", i)
            if time.monotonic() > bench.deadline:
                bench.skip(
                    "inversion, demo weights",
                    method.name,
                    "the minutes that were given are over",
                    False,
                )
                break
            found.append(measure(editor, method, edit, editor.defaults.frames))
        else:
            evaluations, facts = summary(found, [KINDS[i % len(KINDS)] for i in range(CLIPS)])
            bench.counted(
                "inversion, demo weights", method.name, evaluations=evaluations, facts=facts
            )
            print(f"  {method.name:28} {evaluations:.0f} evaluations, {facts}", flush=True)


def summary(found: list[dict], kinds: list[str]) -> tuple[float, dict[str, float]]:
    """Average over clips, with 95 % intervals; errors are averaged geometrically."""

    def column(name: str, of: tuple[str, ...] = KINDS) -> list[float]:
        return [f[name] for f, kind in zip(found, kinds, strict=True) if kind in of]

    error, low, high = geometric(column("error"))
    edited, less, more = interval(column("psnr"))
    facts = {
        "clips": len(found),
        "latent_error": error,
        "latent_error_low": low,
        "latent_error_high": high,
        "reconstruction_db": interval(column("reconstruction"))[0],
        "edit_db": edited,
        "edit_db_low": less,
        "edit_db_high": more,
        "edit_ssim": interval(column("ssim"))[0],
        "edit_trajectory_px": interval(column("trajectory", TRACKED))[0],
        "edit_flicker": interval(column("flicker"))[0],
    }
    # nothing is known of the spread of one clip, and a trajectory may not be followed at all
    alone = [k for k in facts if k.endswith(("_low", "_high")) and len(found) == 1]
    facts = {k: float(f"{v:.4g}") for k, v in facts.items() if v == v and k not in alone}
    return interval(column("evaluations"))[0], facts


def interval(values: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean and the bounds of its 95 % bootstrap interval."""
    array = np.array([x for x in values if x is not None], dtype=float)
    if not len(array):
        return (math.nan,) * 3
    picks = np.random.default_rng(0).integers(len(array), size=(draws, len(array)))
    return (float(array.mean()), *map(float, np.quantile(array[picks].mean(1), (0.025, 0.975))))


def geometric(values: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean and the bounds of its 95 % bootstrap interval."""
    return tuple(math.exp(x) for x in interval([math.log(x) for x in values]))
