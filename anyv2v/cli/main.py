"""The command line: arguments to calls of the Editor, errors to exit codes; no logic."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from anyv2v import checks, loading, weights_folders
from anyv2v.cli import demo, first_frame, notices, settings
from anyv2v.cli.options import OFFLOADS, parser
from anyv2v.cli.process import Signals, Unfailing, unfailing_streams
from anyv2v.cli.sidecar import Provenance, beside, check_sidecar, comment, sidecar_of
from anyv2v.convert.fetch import fetch
from anyv2v.convert.published import convert
from anyv2v.diffusion.inversion import TOLERANCE
from anyv2v.diffusion.schedule import matches
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor
from anyv2v.frame_editors.run import candidates
from anyv2v.media import container
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame, read_image
from anyv2v.media.proportions import Size, check_fit, size_of_short_side
from anyv2v.media.psnr import psnr
from anyv2v.media.sequence import check_sequence_output, writes_sequence
from anyv2v.media.video import SUFFIXES, pyav, read_first_frame, read_video, write_video
from anyv2v.pipeline.request import Edit, EditRequest
from anyv2v.pipeline.source import SUFFIX, Source, Unfinished
from anyv2v.pipeline.step_plan import CachePlan
from anyv2v.runtime.atomic_files import check_output
from anyv2v.runtime.device import choose_device
from anyv2v.runtime.progress import Progress
from anyv2v.weights import hub

DEMO_NOTICE = (
    "the demo weights know rendered shapes of 32x32 pixels and nothing else. "
    "Give --weights a folder written by `anyv2v convert` for videos"
)
PRINTING = ("plan", "weights verify")
"""Commands of which what they print is all that they do; of others it is without an -o."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit status.

    0; 2 for what the caller got wrong; 128 + n after signal n; 1 for the rest.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = {
        "demo": run_demo,
        "convert": run_convert,
        "weights verify": run_verify,
        "weights fetch": run_fetch,
        "edit": run_edit,
        "edit-frame": run_edit_frame,
        "plan": run_plan,
        "invert": run_invert,
        "reconstruct": run_reconstruct,
    }
    with unfailing_streams() as out, Signals() as signals:
        status = _run(argv, commands, signals, out)
        out.flush()
        if status == 0 and out.needed and _is_lost(out.failure):
            status = _fail(out.failure, "stdout: ")
    return status


def _is_lost(failure: Exception | None) -> bool:
    """Whether nobody got what was printed; who closes a pipe has what he wants."""
    return isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError)


def _run(argv: list[str], commands: dict[str, Callable], signals: Signals, out: Unfailing) -> int:
    debug = "--debug" in argv
    try:
        # until it is known that more is done: --help, --version, --list
        out.needed = True
        args = parser(commands).parse_args(argv)
        out.needed = args.command in PRINTING or getattr(args, "output", "") is None
        args.signals, debug = signals, args.debug
        if args.unused:
            _say(f"{args.config}: {args.command} has no {', '.join(args.unused)}")
        if hasattr(args, "paper"):
            known = loading.peek(args.weights)
            _tell(settings.fill(args, known.defaults, known.original, _is_source(args.video)))
        args.run(args)
        return 0
    except SystemExit:
        out.flush()
        if _is_lost(out.failure):
            raise SystemExit(_fail(out.failure, "stdout: ")) from None
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        return signals.status
    except SomeFailed as error:
        failures = error.failures.items()
        statuses = [_fail(why, _before(output, why), debug) for output, why in failures]
        return 2 if set(statuses) == {2} else 1
    except Exception as error:
        return _fail(error, debug=debug)


def run_demo(args: argparse.Namespace) -> None:
    pyav()
    folder = checks.path("-o", args.output)
    if not folder.parent.is_dir():
        raise InputError(f"-o {folder}: there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror}") from error
    for name in demo.FILES:
        check_output(folder / name, args.force)
    check_sidecar(folder / demo.EDITED, args.force)
    made = _provenance(args)
    editor = _load(args)
    _tell(_without_effect(args))
    with _progress(args) as progress:
        scores = demo.run(editor, folder, args.kind, args.seed, progress)
    with beside(folder / demo.EDITED, made.of(editor)):
        pass  # the clips are there; which kernels made them is known now
    for name, values in scores.items():
        print(f"{name:13} PSNR to the truth {values['psnr']:.2f} dB")
    print(f"{folder}: {', '.join(demo.FILES)}")


def run_convert(args: argparse.Namespace) -> None:
    with _progress(args) as progress:
        done = progress.bytes("convert")
        config = convert(
            args.src, args.dst, weights_folders.expected_shapes, _dtype(args), args.force, done
        )
    if snapshot := hub.snapshots(args.src):
        _say(f"{args.src} {hub.WHAT}: {snapshot[0]} was read")
    option = "--editor-weights" if "model" in config else "--weights"
    if "adapter" in config:
        option = f"--editor-option adapter={args.dst}"
    print(f"{args.dst}: ready for {option}")


def run_verify(args: argparse.Namespace) -> None:
    with _progress(args) as progress:
        report = weights_folders.inspect(args.dir, progress.bytes("verify"))
    _tell(_without_effect(args))
    print(report)


def run_fetch(args: argparse.Namespace) -> None:
    # the library that downloads shows bars of its own, which are for terminals only
    dtype, no_bars = _dtype(args), args.quiet or not sys.stderr.isatty()
    with _progress(args) as progress:
        done = progress.bytes("convert")
        folder = fetch(args.dst, loading.expected_shapes, dtype, args.force, done, no_bars)
        report = loading.inspect(args.dst, progress.bytes("verify"))
    print(report)
    print(f"{args.dst}: ready for --weights; the download in {folder} is no longer needed")


def run_edit(args: argparse.Namespace) -> None:
    frame_editor = _frame_editor(args)
    _check_edit(args, frame_editor is not None)
    video, (clip, size) = None, _sizes(args)
    if frame_editor is None:
        frames = [read_image(frame) for frame in args.frame]
        stretched = "stretch" if args.paper else None
        fits = [
            args.fit or stretched or check_fit(path, _size(frame), clip, size)
            for path, frame in zip(args.frame, frames, strict=True)
        ]
    else:
        video = Source.load(args.video).video if _is_source(args.video) else _video(args)
        frames = first_frame.edited(args, frame_editor, video.frames[0], len(args.output), clip)
        fits = ["crop"] * len(frames)  # they have the clip's size
        for path, frame in zip(args.save_frame or [], frames, strict=False):
            first_frame.write_picture(path, frame)
            print(path)
    requests = [
        EditRequest(
            frame,
            prompt,
            args.negative_prompt,
            args.guidance,
            args.random_ratio,
            args.seed,
            fit,
        )
        for frame, prompt, fit in zip(frames, args.prompt, fits, strict=True)
    ]
    made = _provenance(args)
    editor, source = _source(args, video=video, uses=first_frame.uses(frame_editor))
    failures: dict[str, Exception] = {}
    done: dict[str, Edit] = {}
    with _progress(args) as progress:
        each = editor.edit_each(
            source,
            requests,
            **settings.of_the_run(args),
            on_step=progress("edit", (args.steps - args.start) * len(requests)),
        )
        for i, (output, edit) in enumerate(zip(args.output, each, strict=True)):
            try:
                if isinstance(edit, Exception):
                    raise edit
                facts = made.of(editor, source, edit.latents, i, None if args.frame else frames[i])
                _write_video(args, output, edit, facts)
                done[output] = edit
            except Exception as error:
                failures[output] = error
    # all that can be written is, before anything is said of it
    for output, edit in done.items():
        _report(output, edit.frames, edit.fps)
    _notice(args)
    if failures:
        raise SomeFailed(failures)


class SomeFailed(Exception):
    """Output -> why it was not made; the others were."""

    def __init__(self, failures: dict[str, Exception]):
        self.failures = failures
        super().__init__(f"{', '.join(failures)} failed")


def _check_edit(args: argparse.Namespace, by_editor: bool) -> None:
    frames, saved = args.frame or [], args.save_frame or []
    count, prompts = len(args.output), len(args.prompt)
    if by_editor and frames:
        raise InputError("--frame and --editor exclude each other")
    if by_editor and count != prompts:
        raise InputError(f"--prompt and -o go together: there are {prompts} and {count}")
    if not by_editor and not len(frames) == prompts == count:
        raise InputError(
            f"--frame, --prompt and -o go together: there are {len(frames)}, {prompts} and {count}"
            + ("" if frames else "; or an --editor makes the frame")
        )
    if saved and not (by_editor and len(saved) == count):
        raise InputError("--save-frame goes with an --editor, once for each -o")
    outputs = [*args.output, *saved]
    for i, output in enumerate(outputs):
        if os.path.realpath(output) in map(os.path.realpath, outputs[:i]):
            raise InputError(f"-o {output}: is given twice")
        suffixes = SUFFIXES if i < count else (".png",)
        _check_output(args, output, suffixes, args.video, *frames, *first_frame.pictures(args))
        of = sidecar_of(output)
        if os.path.realpath(of) in (os.path.realpath(sidecar_of(x)) for x in outputs[:i]):
            raise InputError(f"-o {output}: needs a folder of its own, for its {of.name}")
    checks.whole("start", args.start, 0, args.steps - 1)


def run_edit_frame(args: argparse.Namespace) -> None:
    files = first_frame.frame_files(args.output, args.candidates)
    for file in files:
        _check_output(args, file, (".png",), args.video, *first_frame.pictures(args))
    made = _provenance(args)
    editor = _frame_editor(args)
    if editor is None:
        raise InputError(f"edit-frame needs an --editor: one of {', '.join(EDITORS)}")
    whole = _first_frame(args)
    size = _target(args, _size(whole), _size(whole), 1)
    frame = whole if size == _size(whole) else fit_frame(whole, size, args.fit or "crop")
    (wanted,) = first_frame.requests_of(args, editor, frame, 1, _size(whole))
    seeds = [args.seed + i for i in range(args.candidates)]
    found = candidates(editor, wanted, seeds, args.keep_unchanged)
    _tell(_without_effect(args, first_frame.uses(editor)))
    _tell(notices.of_the_size(args, _size(whole), size))
    with beside(args.output, made.of()):
        first_frame.write_candidates(args.output, frame, found, args.seed)
    for file in files:
        print(file)


def _frame_editor(args: argparse.Namespace) -> FrameEditor | None:
    return first_frame.editor_of(args, choose_device(args.device), _dtype(args))


def _first_frame(args: argparse.Namespace) -> np.ndarray:
    """Of a picture, a video or a source."""
    if _is_source(args.video):
        return Source.load(args.video).video.frames[0]
    return read_first_frame(args.video, args.start_time or 0.0)


def run_plan(args: argparse.Namespace) -> None:
    from anyv2v.pipeline import cost

    if _is_source(args.video):
        raise InputError(f"{args.video}: is inverted already; give the video")
    editor, video = _load(args), _video(args)
    method, steps = settings.of_the_inversion(args)
    predicted = cost.predict(
        editor,
        video,
        edits=args.edits,
        **settings.of_the_run(args),
        guidance=args.guidance,
        method=method,
        inversion_steps=steps,
        feature_memory=args.feature_memory,
    )
    _tell(_of_the_run(args, editor))
    print(predicted)


def run_invert(args: argparse.Namespace) -> None:
    _check_output(args, args.output, (SUFFIX,), args.video)
    if _is_source(args.video):
        raise InputError(f"{args.video}: is inverted already")
    unfinished = Unfinished(args.output + ".unfinished", args.resume)
    made = _provenance(args)
    editor, source = _source(args, unfinished)
    noisiest = source.at(min(source.trajectory.kept))
    with beside(args.output, made.of(editor, source, noisiest)):
        source.save(args.output, args.force, features=args.features)
    unfinished.remove()
    _report(args.output, source.video.frames, source.video.fps)
    _notice(args)


def run_reconstruct(args: argparse.Namespace) -> None:
    if args.output is not None:
        _check_output(args, args.output, SUFFIXES, args.video)
    made = _provenance(args)
    began = time.monotonic()
    editor, source = _source(args)
    inverted = time.monotonic()
    with _progress(args) as progress:
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
    error = ((again.latents - clean).norm() / clean.norm()).item()
    if args.output:
        _write_video(args, args.output, again, made.of(editor, source, again.latents))
    print(
        f"PSNR {psnr(again.frames, source.video.frames):.2f} dB · "
        f"relative error of the latents {error:.3g} · "
        f"{source.evaluations} UNet evaluations to invert · "
        f"{inverted - began:.1f} s to load and invert, {sampled - inverted:.1f} s to sample"
    )
    if args.output:
        _report(args.output, again.frames, again.fps)
    _notice(args)


def _source(
    args: argparse.Namespace,
    unfinished: Unfinished | None = None,
    video: Video | None = None,
    uses: frozenset[str] = frozenset(),
) -> tuple[Editor, Source]:
    """The editor, and the source that VIDEO is or is inverted to.

    Everything that can be wrong is found before the inversion, and what has no effect is said.
    `video`: VIDEO if it was read already; `uses`: what an editor of the frame makes something of.
    """
    choose_device(args.device)
    if _is_source(args.video):
        return _inverted(args, uses)
    method, inversion_steps = settings.of_the_inversion(args)
    video = _video(args) if video is None else video
    editor = _load(args)
    # a run that follows says what it reads; else everything is kept
    plan = None if args.command == "invert" else editor.step_plan(**settings.of_the_run(args))
    last, levels = 0, editor.schedule.levels(inversion_steps)
    if plan is not None:
        editor.check_kept(levels[:-1], plan.source_levels)
        last = min(matches(plan.source_levels, levels).values())
    editor.check_memory(_size(video.frames[0]), len(video.frames), branches=1)
    _tell(_of_the_run(args, editor, uses))
    recording = _recording(args, editor, video)
    with _progress(args) as progress:
        source = editor.invert(
            video,
            method=method,
            steps=inversion_steps,
            prompt=args.inversion_prompt or "",
            on_step=progress("invert", inversion_steps - last),
            tolerance=args.tolerance or TOLERANCE,
            plan=plan,
            recording=recording,
            unfinished=unfinished,
            options=args.options,
        )
    return editor, source


def _inverted(args: argparse.Namespace, uses: frozenset[str]) -> tuple[Editor, Source]:
    """The editor, and the source that VIDEO is."""
    fixed = ("size", "frames", "sample_fps", "start_time")
    fixed += ("inversion_steps", "inversion_prompt", "method", "tolerance")
    if given := [name for name in fixed if getattr(args, name) is not None]:
        option = given[0].replace("_", "-")
        raise InputError(f"--{option} is fixed by {args.video}; invert the video again")
    if not Path(args.video).exists():
        raise InputError(f"{args.video}: no such file")
    editor = _load(args)
    source = editor.load_source(args.video)
    plan = editor.step_plan(**settings.of_the_run(args))
    editor.check_kept(source.trajectory.kept_levels, plan.source_levels)
    how = source.settings
    if args.paper and (how.method, how.steps, how.prompt) != (*settings.PAPER_INVERSION.values(),):
        _say(f"--paper: {args.video} comes from {how.steps} steps of {how.method}, as it is")
    _tell(_of_the_run(args, editor, uses))
    return editor, source


def _recording(args: argparse.Namespace, editor: Editor, video: Video) -> CachePlan | None:
    """The features that an inversion keeps on its way, if it passes those of the run to come."""
    wanted = args.command == "edit" or getattr(args, "features", False)
    nothing = not any(args.injection.fractions.values())
    if not wanted or nothing or args.feature_memory == 0:
        return None
    if not settings.passes(args, editor.backbone):
        return None
    _, steps = settings.of_the_inversion(args)
    given = args.injection, steps, getattr(args, "start", 0), args.feature_memory
    recording = editor.recording(video, *given, options=args.options)
    print(recording)
    return recording


def _video(args: argparse.Namespace) -> Video:
    defaults = loading.peek(args.weights).defaults
    if args.frames == 1:
        raise InputError("--frames 1: 1 frame is no video; at least 2 are needed")
    return read_video(
        args.video,
        size=_sizes(args)[1],
        frames=args.frames or defaults.frames,
        fps=args.sample_fps or defaults.fps,
        start_time=args.start_time or 0.0,
        fit=args.fit or "crop",
    )


def _sizes(args: argparse.Namespace) -> tuple[Size, Size]:
    """(width, height) of the clip as it is, and of what is made of it."""
    if _is_source(args.video):
        size = Source.frame_size(args.video)
        return size, size
    known, there = loading.peek(args.weights), container.facts(args.video)
    clip = there.width, there.height
    return clip, _target(args, clip, known.defaults.size, known.multiple)


def _target(args: argparse.Namespace, clip: Size, default: Size, factor: int) -> Size:
    if isinstance(args.size, int):
        return size_of_short_side(args.size, clip, factor)
    return checks.size(args.size or default, factor)


def _size(picture: np.ndarray) -> Size:
    return picture.shape[1], picture.shape[0]


def _progress(args: argparse.Namespace) -> Progress:
    return Progress(args.quiet, args.signals.check)


def _load(args: argparse.Namespace) -> Editor:
    offload = OFFLOADS[args.offload]
    return loading.load(args.weights, args.device, _dtype(args), offload=offload)


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    return getattr(torch, args.dtype) if args.dtype else None


def _is_source(path: str) -> bool:
    return Path(path).suffix.lower() == SUFFIX


def _is_video(path: str) -> bool:
    try:
        return container.is_video(path)
    except InputError:
        # the command that reads it says what it is
        return False


def _check_output(
    args: argparse.Namespace, path: str, suffixes: tuple[str, ...], *inputs: str
) -> None:
    output = Path(os.path.realpath(path))
    if any(output == Path(os.path.realpath(given)) for given in inputs):
        raise InputError(f"-o {path}: is an input, which is never overwritten")
    given = getattr(args, "weights", loading.DEMO)
    weights = None if given == loading.DEMO else Path(os.path.realpath(given))
    if weights in output.parents:
        raise InputError(f"-o {path}: is in the folder of the weights")
    if suffixes == SUFFIXES and writes_sequence(path):
        check_sequence_output(path, args.force, inputs)
    else:
        check_output(path, args.force, suffixes)
        if suffixes == SUFFIXES:
            pyav()  # else its absence were found when all is computed
    check_sidecar(path, args.force)


def _provenance(args: argparse.Namespace) -> Provenance:
    made = Provenance(args)
    for line in made.changes():
        _say(line)
    return made


def _write_video(args: argparse.Namespace, output: str, edit: Edit, facts: dict) -> None:
    with beside(output, facts):
        write_video(output, edit.frames, edit.fps, args.force, comment(facts))


def _report(output: str, frames: np.ndarray, fps: float) -> None:
    count, height, width, _ = frames.shape
    print(f"{output}: {count} frames, {width}x{height}, {fps:g} fps")


def _tell(lines: Iterable[str | None]) -> None:
    for line in lines:
        if line is not None:
            _say(line)


def _without_effect(
    args: argparse.Namespace, uses: frozenset[str] = frozenset(), passes: bool = True
) -> list[str]:
    method, steps = settings.of_the_inversion(args) if hasattr(args, "method") else ("", 0)
    on_cpu = choose_device(getattr(args, "device", "cpu")).type == "cpu"
    video = getattr(args, "video", "")
    inverted, still = _is_source(video), not _is_video(video)
    return notices.without_effect(args, method, steps, passes, uses, inverted, still, on_cpu)


def _of_the_run(
    args: argparse.Namespace, editor: Editor, uses: frozenset[str] = frozenset()
) -> list[str | None]:
    """What has no effect or is lost in a run that begins now."""
    lines: list[str | None] = [*_without_effect(args, uses, settings.passes(args, editor.backbone))]
    if hasattr(editor.backbone, "tokenizer"):
        tokenizer = editor.backbone.tokenizer
        lines += notices.unread(args, tokenizer.lost, tokenizer.tokens)
    if not _is_source(args.video):
        lines += notices.of_the_size(args, *_sizes(args), editor.backbone.codec.multiple)
        if getattr(args, "output", None):
            lines.append(notices.silent(args.video, container.facts(args.video).audio))
    if hasattr(args, "resume"):
        path = f"{args.output}.unfinished"
        lines.append(notices.beginning_again(path, os.path.exists(path), args.resume))
    return lines


def _notice(args: argparse.Namespace) -> None:
    if args.weights == loading.DEMO:
        _say(DEMO_NOTICE)


def _is_cpu_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _before(output: str, why: Exception) -> str:
    """The name of an output before what went wrong with it, unless that has it already."""
    return "" if output in str(why) else f"{output}: "


def _fail(error: Exception, prefix: str = "", debug: bool = False) -> int:
    """Says what went wrong, in one line; gives the exit status."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, InputError):
        message, status = error, 2
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _is_cpu_out_of_memory(error):
        message, status = "not enough memory: a smaller size or fewer frames need less", 2
    else:
        message, status = f"{type(error).__name__}: {error}", 1
    _say(f"{prefix}{message}")
    return status


def _say(message: object) -> None:
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)
