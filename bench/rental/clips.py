"""U2: a clip of several windows, a guided edit, and protection, at the published size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import anyv2v
from anyv2v.long.windows import plan_windows
from bench.rental.edits import PROMPT, SAME, Job
from bench.rental.lab import Lab, Times
from bench.truth import relative

WINDOWS = 3
"""Number of windows of the long clip."""


@torch.no_grad()
def long(lab: Lab) -> None:
    """U2: measure an edit of several windows beside as many of one, and what a guide adds."""
    job = Job(lab)
    editor, window = job.editor, job.editor.defaults.frames
    run = {"steps": job.steps}
    # one window first, which compiles and checks the kernels
    _took(lab, lambda: job.edit(job.invert()))
    one, _ = _took(lab, lambda: job.edit(job.invert()))
    frames = window
    while len(plan_windows(frames, window, None)) < WINDOWS:
        frames += 1
    clip = np.concatenate([job.video.frames] * WINDOWS)[:frames]
    video = anyv2v.Video(clip, job.video.fps)
    lab.begin_peak()
    invert_s, source = _took(lab, lambda: editor.invert_long(video, **run))
    edit_s, edit = _took(lab, lambda: editor.edit_long(source, job.frame, PROMPT, **run))
    total = invert_s + edit_s
    whole = edit.frames.shape == clip.shape and bool(torch.isfinite(edit.latents).all())
    lab.fact(
        f"a clip of {WINDOWS} windows",
        f"{frames} frames, windows of {window}",
        "ok" if whole else "wrong",
        times=Times(total, total, total, 1),
        invert_s=invert_s,
        edit_s=edit_s,
        windows_of_one_clip=total / one,
        headline=True,
        **lab.peak(),
    )
    source = job.invert()
    plain_s, plain = _took(lab, lambda: job.edit(source))
    for guide in ("auto", "patches"):
        seconds, guided = _took(lab, lambda guide=guide: job.edit(source, guide=guide))
        finite = bool(torch.isfinite(guided.latents).all())
        lab.fact(
            "a guided edit",
            guide,
            "ok" if finite else "wrong",
            times=Times(seconds, seconds, seconds, 1),
            without_s=plain_s,
            headline=True,
        )
    seconds, kept = _took(lab, lambda: anyv2v.protect(plain, source))
    lab.fact(
        "protect(edit, source)",
        times=Times(seconds, seconds, seconds, 1),
        kept=kept.kept,
        headline=True,
    )
    again = job.edit(source)
    off = relative(again.latents, plain.latents)
    lab.fact(
        "an edit after all that",
        "is the one before" if off <= SAME[editor.backbone.dtype] else "is another",
        "ok" if off <= SAME[editor.backbone.dtype] else "wrong",
        error=off,
    )


def _took(lab: Lab, run: Callable[[], object]) -> tuple[float, object]:
    begin = lab.stopwatch()
    made = run()
    return lab.stopwatch() - begin, made
