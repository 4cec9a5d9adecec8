"""S4, S5: whole edits and the original's procedure. T3: features on the host, edits in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import anyv2v
from anyv2v.diffusion.inversion import METHODS
from anyv2v.editor import Editor
from anyv2v.pipeline.planning import recording_is_free
from bench.core import captured_graph
from bench.counted import BRANCHES, INVERSION
from bench.rental.lab import Lab, Times, quantiles
from bench.rental.network import use_attention
from bench.subjects import demo, published
from bench.truth import relative

PROMPT = "a man in a red shirt walking"
EVERYWHERE = anyv2v.Injection(1.0, 1.0, 1.0)
SAME = {torch.float32: 1e-4, torch.float16: 5e-2}
"""Relative error allowed between edits that should be equal; see bench/edit.py."""


class Job:
    """An editor, by default of I2VGen-XL's published size, random pictures, and an edit of them."""

    def __init__(self, lab: Lab, editor: Editor | None = None):
        self.editor: Editor = editor or (demo if lab.dry else published)(lab.device)
        (width, height), frames = self.editor.defaults.size, self.editor.defaults.frames
        generator = np.random.default_rng(0)
        # random blocks of 16x16 pixels, somewhat like smooth pictures
        shape = (frames + 1, height // 16, width // 16, 3)
        small = generator.integers(256, size=shape, dtype=np.uint8)
        clip = small.repeat(16, axis=1).repeat(16, axis=2)
        self.video, self.frame = anyv2v.Video(clip[1:], 8), clip[0]
        self.steps = 5 if lab.dry else 50

    def invert(self, memory: int | None = None, **options) -> anyv2v.Source:
        """Invert as the command line does: the features that the edit injects are recorded."""
        plan = self.editor.step_plan(self.steps)
        recording = None
        if recording_is_free(self.editor.backbone, next(iter(METHODS)), self.steps, self.steps, {}):
            recording = self.editor.recording(self.video, steps=self.steps, memory=memory)
        return self.editor.invert(
            self.video, steps=self.steps, plan=plan, recording=recording, **options
        )

    def edit(self, source: anyv2v.Source, **options) -> anyv2v.Edit:
        """Edit the video."""
        options = {"steps": self.steps} | options
        return self.editor.edit(source, self.frame, PROMPT, **options)


@torch.no_grad()
def default(lab: Lab) -> None:
    """S4: measure first and further edits, their parts and their memory."""
    start = lab.stopwatch()
    job = Job(lab)
    editor = job.editor
    lab.fact("setting up", "random weights on the device", seconds=lab.stopwatch() - start)

    latents = first_and_next(lab, "edit", job)
    # with random weights the fixed point may converge faster or more slowly than with trained ones,
    # so measure the bound, which does not depend on that
    once(
        lab,
        "edit",
        "an inversion that takes every evaluation it may",
        lambda: job.invert(tolerance=1e-30),
        headline=True,
    )
    _parts(lab, job, latents)
    # our kernel does not support the head dim of the autoencoder, which stays with PyTorch's
    name = "sdpa" if lab.dry else "triton,sdpa"
    source = job.invert()
    with use_attention(name):
        job.edit(source)
        words = f"anyv2v, next edit, ANYV2V_ATTENTION={name}"
        once(lab, "edit", words, lambda: job.edit(source))
    source = None
    once(
        lab,
        "edit",
        "anyv2v, first edit, --feature-memory 0",
        lambda: job.edit(job.invert(memory=0)),
        headline=True,
    )
    # from here on, the CLIP towers and the encoder are offloaded to the host
    job.editor = Editor(editor.backbone, offload=True)
    for memory, words in ((0, "offload, --feature-memory 0"), (None, "offload")):
        once(
            lab,
            "edit",
            f"anyv2v, first edit, {words}",
            lambda memory=memory: job.edit(job.invert(memory=memory)),
            headline=True,
        )


def once(lab: Lab, case: str, name: str, make: Callable[[], object], **columns) -> None:
    """Measure time and peak memory of one run."""
    lab.begin_peak()
    begin = lab.stopwatch()
    make()
    seconds = lab.stopwatch() - begin
    lab.fact(case, name, times=Times(seconds, seconds, seconds, 1), **lab.peak(), **columns)


def first_and_next(lab: Lab, case: str, job: Job, rounds: int = 3) -> Tensor:
    """Measure an inversion, a first and a further edit several times; returns the last latents."""
    firsts, nexts, parts = [], [], []
    truth = None
    for i in range(rounds):
        source = first = further = None  # or the round before would count in the peak
        lab.begin_peak()
        begin = lab.stopwatch()
        source = job.invert()
        middle = lab.stopwatch()
        first = job.edit(source)
        end = lab.stopwatch()
        further = job.edit(source)
        last = lab.stopwatch()
        off = relative(further.latents, first.latents)
        latents = first.latents
        truth = latents if truth is None else truth
        again = relative(latents, truth)
        bad = not max(off, again) <= SAME[job.editor.backbone.dtype]
        lab.fact(
            f"{case}, default",
            f"round {i + 1}",
            "wrong" if bad else "ok",
            invert_s=middle - begin,
            first_s=end - begin,
            next_s=last - end,
            evaluations=source.evaluations,
            further_equals_first=off,
            first_equals_round_1=again,
            headline=True,
            **lab.peak(),
        )
        parts.append((middle - begin, source.evaluations))
        firsts.append(end - begin)
        nexts.append(last - end)
    # the first round includes loading of libraries, and compiling and checking of kernels
    times_first, times_next = quantiles(firsts[1:]), quantiles(nexts[1:])
    lab.fact(
        case,
        "anyv2v, first edit",
        times=times_first,
        evaluations=parts[-1][1] + 2 * job.steps,
        cold_s=firsts[0],
        headline=True,
    )
    lab.fact(
        case,
        "anyv2v, next edit of the source",
        times=times_next,
        evaluations=2 * job.steps,
        headline=True,
    )
    return latents


def _parts(lab: Lab, job: Job, latents: Tensor) -> None:
    """Measure the parts of an edit besides its predictions."""
    editor = job.editor
    for name, part in (
        ("recording(): what will be kept, on the host", lambda: editor.recording(job.video)),
        ("the clip into latents", lambda: editor.encode_frames(job.video.frames)),
        ("latents into the clip", lambda: editor.decode(latents)),
        (
            "towers, one branch",
            lambda: editor.condition(
                PROMPT, job.frame, len(job.video.frames), editor.defaults.size
            ),
        ),
    ):
        part()
        once(lab, "parts of an edit", name, part, headline=True)


@torch.no_grad()
def original(lab: Lab) -> None:
    """S5: measure the original's procedure, 500 DDIM steps and 50 steps of three branches.

    The total is extrapolated from some steps of each. The source is in the batch of every step,
    whether or not anything is injected there.
    """
    job = Job(lab)
    editor, steps = job.editor, job.steps
    inversion = 50 if lab.dry else INVERSION
    # sample the last steps only, whose first latents a short inversion reaches
    sampled = 3 if lab.dry else 8
    start = steps - sampled
    plan = editor.step_plan(steps, start, source_pass="always")
    beats: list[float] = []

    def beat(*_: object) -> None:
        beats.append(lab.stopwatch())

    def per_step(skip: int = 3 if not lab.dry else 1) -> float:
        # leave out the first steps, which warm up and capture graphs
        taken = [b - a for a, b in zip(beats, beats[1:], strict=False)][skip - 1 :]
        beats.clear()
        return float(np.median(taken))

    source = editor.invert(job.video, "ddim", inversion, plan=plan, on_step=beat)
    one = per_step()
    lab.fact("original's procedure", "a step of inversion", seconds=one, headline=True)
    lengths = {}
    for name, injection in (
        ("everything injected", EVERYWHERE),
        ("temporal layers injected", anyv2v.Injection(0.0, 0.0, 1.0)),
        ("nothing injected", anyv2v.Injection(0.0, 0.0, 0.0)),
    ):
        (sites,) = {step.sites for step in editor.step_plan(steps, start, injection).steps}
        job.edit(source, start=start, injection=injection, source_pass="always", on_step=beat)
        lengths[sites] = per_step()
        lab.fact("original's procedure", f"a step of sampling, {name}", seconds=lengths[sites])
    kinds = Counter(step.sites for step in editor.step_plan(steps).steps)
    sampling = sum(n * lengths[sites] for sites, n in kinds.items())
    ends = lab.stopwatch()
    editor.encode_frames(job.video.frames)
    editor.decode(source.trajectory.clean)
    around = lab.stopwatch() - ends
    total = inversion * one + sampling + around
    lab.fact(
        "edit",
        "as the original",
        times=Times(total, total, total, 1),
        extrapolated=f"from {source.evaluations} steps of inversion, 3 x {sampled} of sampling",
        evaluations=inversion + BRANCHES * steps,
        headline=True,
    )


@torch.no_grad()
def in_a_row(lab: Lab) -> None:
    """T3: measure features in pinned host memory, and edits in a row with a failing capture."""
    job = Job(lab)
    editor = job.editor
    plan = editor.step_plan(job.steps)
    recording = editor.recording(job.video, steps=job.steps)
    source = editor.invert(job.video, steps=job.steps, plan=plan, recording=recording)
    begin = lab.stopwatch()
    here = job.edit(source)
    on_device = lab.stopwatch() - begin
    forced = replace(recording, placement=dict.fromkeys(recording.placement, "host"))
    source = editor.invert(job.video, steps=job.steps, plan=plan, recording=forced)
    begin = lab.stopwatch()
    there = job.edit(source)
    on_host = lab.stopwatch() - begin
    same = torch.equal(here.latents, there.latents)
    lab.fact(
        "features in pinned host memory",
        "the edit is that of features on the device, to the bit" if same else "another edit",
        "ok" if same else "wrong",
        error=relative(there.latents, here.latents),
        seconds=on_host,
        on_device_s=on_device,
        gigabytes=recording.bytes() / 1e9,
        headline=True,
    )
    del source
    reserved = []
    for i in range(2 if lab.dry else 4):
        edit = job.edit(job.invert())
        if not lab.dry:
            reserved.append(torch.cuda.memory_reserved() / 1e9)
        lab.fact("edits in a row", f"edit {i + 1}", reserved_gb=reserved[-1] if reserved else None)
        if i == 1 and not lab.dry:
            lab.fact("edits in a row", "a capture that fails", **broken_capture())
    off = relative(edit.latents, here.latents)
    lab.fact(
        "edits in a row",
        "the last is right" if off <= SAME[editor.backbone.dtype] else "the last is WRONG",
        "ok" if off <= SAME[editor.backbone.dtype] else "wrong",
        error=off,
        first_gb=reserved[0] if reserved else None,
        last_gb=reserved[-1] if reserved else None,
        headline=True,
    )


def broken_capture() -> dict[str, str]:
    """Let a capture fail; returns the error and whether the cache can still be emptied."""
    x = torch.ones(4, device="cuda")
    try:
        captured_graph(lambda: x.sum().item())
        raised = "nothing"
    except Exception as e:
        raised = f"{type(e).__name__}: {e}".splitlines()[0][:120]
    try:
        torch.cuda.empty_cache()
        emptied = "empties"
    except Exception as e:
        emptied = f"{type(e).__name__}: {e}".splitlines()[0][:120]
    return {"raised": raised, "cache": emptied}
