"""S4, S5: whole edits and the original's procedure. T3: features on the host, edits in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import anyv2v
from anyv2v.editor import Editor
from bench.core import captured_graph
from bench.counted import BRANCHES, INVERSION
from bench.rental.lab import Lab, Times, quantiles
from bench.rental.network import attending
from bench.subjects import demo, published
from bench.truth import relative

PROMPT = "a man in a red shirt walking"
EVERYWHERE = anyv2v.Injection(1.0, 1.0, 1.0)
SAME = {torch.float32: 1e-4, torch.float16: 5e-2}
"""How far edits that ought to be one may lie from one another: see bench/edit.py."""


class Job:
    """An editor of the published size, a clip of random pictures and what to make of it."""

    def __init__(self, lab: Lab):
        self.editor: Editor = (demo if lab.dry else published)(lab.device)
        (width, height), frames = self.editor.defaults.size, self.editor.defaults.frames
        generator = np.random.default_rng(0)
        # smooth, as far as random pictures can be: blocks of sixteen pixels
        shape = (frames + 1, height // 16, width // 16, 3)
        small = generator.integers(256, size=shape, dtype=np.uint8)
        clip = small.repeat(16, axis=1).repeat(16, axis=2)
        self.video, self.frame = anyv2v.Video(clip[1:], 8), clip[0]
        self.steps = 5 if lab.dry else 50

    def invert(self, memory: int | None = None, **options) -> anyv2v.Source:
        """As the command line does it: what the edit will inject is recorded on the way."""
        plan = self.editor.step_plan(self.steps)
        recording = self.editor.recording(self.video, steps=self.steps, memory=memory)
        return self.editor.invert(
            self.video, steps=self.steps, plan=plan, recording=recording, **options
        )

    def edit(self, source: anyv2v.Source, **options) -> anyv2v.Edit:
        options = {"steps": self.steps} | options
        return self.editor.edit(source, self.frame, PROMPT, **options)


@torch.no_grad()
def default(lab: Lab) -> None:
    """First edits and further ones; what their parts take; memory."""
    start = lab.stopwatch()
    job = Job(lab)
    editor = job.editor
    lab.fact("setting up", "random weights on the device", seconds=lab.stopwatch() - start)

    latents = _rounds(lab, job)
    # random weights may converge sooner or later than trained ones: the bound does not depend
    _once(
        lab,
        "edit",
        "an inversion that takes every evaluation it may",
        lambda: job.invert(tolerance=1e-30),
        headline=True,
    )
    _parts(lab, job, latents)
    # the autoencoder's heads are wider than our kernel's: they stay with PyTorch
    name = "sdpa" if lab.dry else "triton,sdpa"
    source = job.invert()
    with attending(name):
        job.edit(source)
        words = f"anyv2v, next edit, ANYV2V_ATTENTION={name}"
        _once(lab, "edit", words, lambda: job.edit(source))
    source = None
    _once(
        lab,
        "edit",
        "anyv2v, first edit, --feature-memory 0",
        lambda: job.edit(job.invert(memory=0)),
        headline=True,
    )
    # towers and encoder wait on the host from here on
    job.editor = Editor(editor.backbone, offload=True)
    for memory, words in ((0, "offload, --feature-memory 0"), (None, "offload")):
        _once(
            lab,
            "edit",
            f"anyv2v, first edit, {words}",
            lambda memory=memory: job.edit(job.invert(memory=memory)),
            headline=True,
        )


def _once(lab: Lab, case: str, name: str, make: Callable[[], object], **columns) -> None:
    """Time and peak of memory of one run."""
    lab.begin_peak()
    begin = lab.stopwatch()
    make()
    seconds = lab.stopwatch() - begin
    lab.fact(case, name, times=Times(seconds, seconds, seconds, 1), **lab.peak(), **columns)


def _rounds(lab: Lab, job: Job) -> Tensor:
    """Three times an inversion, a first edit and a further one; the latents of the last."""
    firsts, nexts, parts = [], [], []
    truth = None
    for i in range(3):
        source = first = further = None  # a round before would count in the peak
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
            "edit, default",
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
    # the first round starts a process: libraries load, kernels are compiled and checked
    times_first, times_next = quantiles(firsts[1:]), quantiles(nexts[1:])
    lab.fact(
        "edit",
        "anyv2v, first edit",
        times=times_first,
        evaluations=parts[-1][1] + 2 * job.steps,
        cold_s=firsts[0],
        headline=True,
    )
    lab.fact(
        "edit",
        "anyv2v, next edit of the source",
        times=times_next,
        evaluations=2 * job.steps,
        headline=True,
    )
    return latents


def _parts(lab: Lab, job: Job, latents: Tensor) -> None:
    """What an edit does besides its predictions."""
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
        _once(lab, "parts of an edit", name, part, headline=True)


@torch.no_grad()
def original(lab: Lab) -> None:
    """500 DDIM steps and 50 steps of three branches: extrapolated from some of each.

    The source is in the batch of every step, whatever is injected there.
    """
    job = Job(lab)
    editor, steps = job.editor, job.steps
    inversion = 50 if lab.dry else INVERSION
    # the last steps of sampling start within what is inverted
    sampled = 3 if lab.dry else 8
    start = steps - sampled
    plan = editor.step_plan(steps, start, source_pass="always")
    beats: list[float] = []

    def beat(*_: object) -> None:
        beats.append(lab.stopwatch())

    def per_step(skip: int = 3 if not lab.dry else 1) -> float:
        # the first steps warm up and capture
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
    """Features in pinned host memory; edits in a row; a capture that fails in between."""
    job = Job(lab)
    editor = job.editor
    plan = editor.step_plan(job.steps)
    wanted = editor.recording(job.video, steps=job.steps)
    source = editor.invert(job.video, steps=job.steps, plan=plan, recording=wanted)
    begin = lab.stopwatch()
    here = job.edit(source)
    on_device = lab.stopwatch() - begin
    forced = replace(wanted, places=dict.fromkeys(wanted.places, "host"))
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
        gigabytes=wanted.bytes() / 1e9,
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
    """What a capture that fails leaves behind."""
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
