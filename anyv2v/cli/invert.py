"""`anyv2v invert`, `anyv2v reconstruct` and `anyv2v plan`."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from anyv2v.cli import settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, size_of, windows_of
from anyv2v.cli.console import say, tell
from anyv2v.cli.finish import Form
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import Outputs, Written, report
from anyv2v.cli.sidecar import Inverted, Provenance, latents_sha256, with_sidecar
from anyv2v.cli.source import notice, obtain, of_the_run, progress_of
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.media.frames import Video
from anyv2v.media.psnr import psnr
from anyv2v.media.video import SUFFIXES, stream_video
from anyv2v.pipeline.source import SUFFIX, Unfinished
from anyv2v.runtime.memory import require_memory

if TYPE_CHECKING:
    from anyv2v.pipeline.cost import EditCost


def run_invert(args: argparse.Namespace) -> None:
    """Runs `anyv2v invert`: inverts a video and saves the result, a source, for later edits."""
    outputs = typed(Outputs, args)
    outputs.check((SUFFIX,))
    if typed(Clip, args).is_source:
        raise InputError(f"{args.video}: is inverted already")
    unfinished = Unfinished(args.output + ".unfinished", args.resume)
    provenance = Provenance.begin(args)
    editor, source = obtain(args, unfinished)
    print(source.figures)
    noisiest = source.at(min(source.trajectory.latents))
    facts = provenance.of(editor, Inverted.of(source), latents_sha256(lambda: [noisiest]))
    with with_sidecar(args.output, facts):
        source.save(args.output, args.force, features=args.features)
    unfinished.remove()
    video = source.video
    report(args.output, Written(len(video.frames), size_of(video.frames[0]), video.fps))
    notice(args)


def run_reconstruct(args: argparse.Namespace) -> None:
    """Runs `anyv2v reconstruct`: inverts a video, samples it again, and prints how near it comes.

    Nothing is injected. The new video is written if `-o` is given.
    """
    outputs = typed(Outputs, args)
    outputs.check(SUFFIXES)
    provenance = Provenance.begin(args)
    began = time.monotonic()
    editor, source = obtain(args)
    inverted = time.monotonic()
    with progress_of(args) as progress:
        again = editor.reconstruct(
            source,
            args.prompt,
            args.negative_prompt,
            steps=args.steps,
            start=args.start,
            guidance=args.guidance,
            options=args.options,
            on_step=progress("reconstruct", args.steps - args.start),
        )
    sampled = time.monotonic()
    clean = source.trajectory.clean.to(again.latents.device)
    written = None
    error = ((again.latents - clean).norm() / clean.norm()).item()
    if args.output:
        facts = provenance.of(editor, Inverted.of(source), latents_sha256(lambda: [again.latents]))
        plain = Form(source.video).finish({})
        written = outputs.write(args.output, again.frames, plain, facts)
    print(
        f"PSNR {psnr(again.frames, source.video.frames):.2f} dB · "
        f"relative error of the latents {error:.3g} · "
        f"{source.evaluations} evaluations to invert · "
        f"{inverted - began:.1f} s to load and invert, {sampled - inverted:.1f} s to sample"
    )
    if written is not None:
        report(args.output, written)
    notice(args)


def run_plan(args: argparse.Namespace) -> None:
    """Runs `anyv2v plan`: prints the predicted cost of an edit without running the edit."""
    clip = typed(Clip, args)
    if clip.is_source:
        raise InputError(f"{args.video}: is inverted already; give the video")
    editor = typed(Model, args).load()
    video, windows = one_window(args, clip)
    cost = predicted(args, editor, video)
    tell(of_the_run(args, editor))
    if windows > 1:
        print(f"windows: {windows} of {len(video.frames)} frames; for each of them")
    print(cost)
    (width, height), multiple = size_of(video.frames[0]), editor.backbone.codec.size_multiple
    # besides the weights, which are loaded
    each = (cost.peak - cost.weights) / (width * height)
    wanted = (width, height), len(video.frames), multiple, editor.backbone.device
    try:
        require_memory(lambda w, h: round(each * w * h), *wanted)
    except InputError as short:
        say(short)


def predicted(args: argparse.Namespace, editor: Editor, video: Video) -> EditCost:
    """Returns the predicted cost of an edit of `video` by the options of `plan` or of `edit`."""
    from anyv2v.pipeline.cost import predict_cost  # imports what nothing else needs

    method, steps = settings.of_the_inversion(args)
    return predict_cost(
        editor,
        video,
        edits=getattr(args, "edits", 1),
        **settings.of_the_run(args),
        guidance=args.guidance,
        method=method,
        inversion_steps=steps,
        feature_memory=args.feature_memory,
    )


def one_window(args: argparse.Namespace, clip: Clip) -> tuple[Video, int]:
    """Returns the frames of the first window of VIDEO, and how many windows an edit takes."""
    with stream_video(args.video, **clip.reading()) as stream:
        frames = list(islice(stream, getattr(args, "window", 0) or None))
        windows = windows_of(args, len(frames) + sum(1 for _ in stream))
        return Video.owning(np.stack(frames[: len(windows[0])]), stream.fps), len(windows)
