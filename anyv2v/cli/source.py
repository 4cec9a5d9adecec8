"""The source of a command: VIDEO itself, or what VIDEO is inverted to after all checks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from anyv2v import checks, loading
from anyv2v.cli import notices, settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, size_of
from anyv2v.cli.console import say, tell
from anyv2v.cli.model import Model
from anyv2v.cli.sharing import alike, editor_of, widest
from anyv2v.cli.values import SOURCE
from anyv2v.diffusion.schedule import match_levels
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.media import container
from anyv2v.media.frames import Video
from anyv2v.pipeline.source import Source, Unfinished
from anyv2v.pipeline.step_plan import CachePlan, together
from anyv2v.runtime.progress import Progress
from anyv2v.weights.packaged import PACKAGED

PACKAGED_NOTICE = (
    "the {} weights know rendered shapes of 32x32 pixels and nothing else, so edits of other "
    "clips fade. `anyv2v weights fetch` gets published weights for --weights"
)
FIXED = ("size", "frames", "sample_fps", "start_time")
FIXED += ("inversion_steps", "inversion_prompt", "method", "tolerance", "window", "shared")
"""Options that cannot be given with a source, because they were fixed when it was made."""


def obtain(
    args: argparse.Namespace,
    unfinished: Unfinished | None = None,
    video: Video | None = None,
    uses: frozenset[str] = frozenset(),
) -> tuple[Editor, Source]:
    """Returns the editor, and the source that VIDEO is or is inverted to.

    Warnings are printed before the inversion. unfinished: saves the state of the inversion, and may
    resume it; None saves nothing. video: the frames of VIDEO if they were read already; None reads
    them. uses: which options the frame editor reads, as in `first_frame.uses`. Raises InputError
    for bad input, before the inversion.
    """
    model, clip = typed(Model, args), typed(Clip, args)
    _ = model.torch_device  # refused before anything is read
    if clip.is_source:
        return _loaded(args, uses)
    video = clip.read() if video is None else video
    group = loading.peek(args.weights).frames_per_latent
    checks.grouped("frames", len(video.frames), group)  # before the weights are loaded
    editor, inversion, count = prepare(args, video, uses)

    def invert(unfinished: Unfinished | None) -> Source:
        with progress_of(args) as progress:
            on_step = progress("invert", count)
            return editor.invert(video, **inversion, unfinished=unfinished, on_step=on_step)

    return editor, invert(unfinished) if args.sharing is None else args.sharing.source(invert)


def prepare(
    args: argparse.Namespace, video: Video, uses: frozenset[str] = frozenset()
) -> tuple[Editor, dict[str, Any], int]:
    """Returns the editor, the arguments of `Editor.invert` for VIDEO, and the number of its steps.

    Warnings are printed. video: the frames to be inverted, or those of one window of them. uses: as
    in `obtain`. Raises InputError for bad input.
    """
    method, inversion_steps = settings.of_the_inversion(args)
    editor = editor_of(args)
    # only the latents that the edits read are kept; `anyv2v invert` keeps all
    plan = None
    if args.command != "invert":
        plan = together([editor.step_plan(**settings.of_the_run(each)) for each in alike(args)])
    last, levels = 0, editor.schedule.levels(inversion_steps)
    if plan is not None:
        editor.check_kept(levels[:-1], plan.source_levels)
        last = min(match_levels(plan.source_levels, levels).values())
    editor.check_memory(size_of(video.frames[0]), len(video.frames), branches=1)
    tell(of_the_run(args, editor, uses))
    inversion = {
        "method": method,
        "steps": inversion_steps,
        "prompt": args.inversion_prompt or "",
        "tolerance": args.tolerance,
        "plan": plan,
        "recording": cache_plan(args, editor, video),
        "options": args.options,
        "round_trip": (again := args.command == "invert" and args.round_trip),
    }
    return editor, inversion, (1 + again) * (inversion_steps - last)


def _loaded(args: argparse.Namespace, uses: frozenset[str]) -> tuple[Editor, Source]:
    """The editor, and the source that VIDEO is."""
    if given := [name for name in FIXED if getattr(args, name, None) is not None]:
        option = given[0].replace("_", "-")
        raise InputError(f"--{option} is fixed by {args.video}; invert the video again")
    if not Path(args.video).exists():
        raise InputError(f"{args.video}: no such file")
    editor = editor_of(args)

    def load(_: Unfinished | None = None) -> Source:
        return editor.load_source(args.video)

    source = load() if args.sharing is None else args.sharing.source(load)
    plan = editor.step_plan(**settings.of_the_run(args))
    editor.check_kept(source.trajectory.stored_levels, plan.source_levels)
    how = source.settings
    if args.paper and (how.method, how.steps, how.prompt) != (*settings.PAPER_INVERSION.values(),):
        say(f"--paper: {args.video} comes from {how.steps} steps of {how.method}, as it is")
    tell(of_the_run(args, editor, uses))
    return editor, source


def cache_plan(args: argparse.Namespace, editor: Editor, video: Video) -> CachePlan | None:
    """Returns which features the inversion of `video` records, and where; None if it records none.

    The plan is printed as well.
    """
    recorded = [each for each in alike(args) if _records(each, editor)]
    if not recorded:
        return None
    _, steps = settings.of_the_inversion(args)
    injection = widest([each.injection for each in recorded])
    start = min(getattr(each, "start", 0) for each in recorded)
    given = injection, steps, start, recorded[0].feature_memory
    recording = editor.recording(video, *given, options=args.options)
    print(recording)
    return recording


def _records(args: argparse.Namespace, editor: Editor) -> bool:
    wanted = args.command == "edit" or getattr(args, "features", False)
    nothing = not any(args.injection.fractions.values())
    if not wanted or nothing or args.feature_memory == 0:
        return False
    return settings.passes(args, editor.backbone)


def progress_of(args: argparse.Namespace) -> Progress:
    """Returns a `Progress` that shows nothing with --quiet, and that a signal interrupts.

    A page gives one of its own.
    """
    return args.progress or Progress(args.quiet, args.signals.check)


def without_effect(
    args: argparse.Namespace, uses: frozenset[str] = frozenset(), passes: bool = True
) -> list[str]:
    """Returns one line for each option that was given and changes nothing; see `notices`.

    uses: which options the frame editor reads, as in `first_frame.uses`. passes: whether the
    inversion can record the features that the edit injects.
    """
    method, steps = settings.of_the_inversion(args) if hasattr(args, "method") else ("", 0)
    on_cpu = not hasattr(args, "device") or typed(Model, args).torch_device.type == "cpu"
    clip = typed(Clip, args) if hasattr(args, "video") else None
    inverted = clip is not None and clip.is_source
    still = clip is None or clip.is_still
    return notices.without_effect(args, method, steps, passes, uses, inverted, still, on_cpu)


def of_the_run(
    args: argparse.Namespace, editor: Editor, uses: frozenset[str] = frozenset()
) -> list[str | None]:
    """Returns the warnings of a run that is about to begin; None in the list stands for no warning.

    uses: which options the frame editor reads, as in `first_frame.uses`.
    """
    uses |= settings.seed_of_the_sampler(args, editor.backbone)
    lines: list[str | None] = [*without_effect(args, uses, settings.passes(args, editor.backbone))]
    if tokenizer := getattr(editor.backbone, "tokenizer", None):
        lines += notices.unread(args, tokenizer.lost, tokenizer.tokens)
    clip = typed(Clip, args)
    if not clip.is_source:
        lines += notices.of_the_size(args, *clip.sizes(), editor.backbone.codec.size_multiple)
        if getattr(args, "output", None) and clip.out_size != SOURCE:
            lines.append(notices.silent(clip.video, container.facts(clip.video).audio))
    if args.command == "invert":
        path = f"{args.output}.unfinished"
        lines.append(notices.beginning_again(path, os.path.exists(path), args.resume))
    return lines


def notice(args: argparse.Namespace) -> None:
    """Prints what the small weights of the package are for, if the command used them."""
    if text := packaged_notice(args.weights):
        say(text)


def packaged_notice(weights: str) -> str:
    """Returns what small weights that come with the package are for; "" for other weights."""
    return PACKAGED_NOTICE.format(weights) if weights in PACKAGED else ""
