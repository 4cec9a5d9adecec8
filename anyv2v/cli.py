"""The command line: arguments to calls of the Editor, errors to exit codes; no logic."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

import anyv2v
from anyv2v import demo, loading
from anyv2v.convert.huggingface import convert
from anyv2v.editor import METHODS, NEGATIVE_PROMPT, Editor, divisible
from anyv2v.errors import InputError
from anyv2v.files import check_output
from anyv2v.media.image import FITS, read_image
from anyv2v.media.video import SUFFIXES, read_video, write_video
from anyv2v.source import SUFFIX, Source

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEMO_NOTICE = (
    "the demo weights are random so far, not trained: everything runs, but the result is noise. "
    "Give --weights a folder written by `anyv2v convert` for real edits"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0, 2 for what the caller got wrong, 1 for the rest."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # a terminated run leaves as little behind as an interrupted one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        return 0
    except InputError as error:
        return _fail(argv, error, 2)
    except KeyboardInterrupt:
        return _fail(argv, "interrupted", 1)
    except Exception as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _is_cpu_out_of_memory(error):
            advice = "not enough memory: take a smaller --size, fewer --frames or --dtype float16"
            return _fail(argv, advice, 2)
        return _fail(argv, f"{type(error).__name__}: {error}", 1)


def run_demo(args: argparse.Namespace) -> None:
    folder = Path(args.output)
    if not folder.parent.is_dir():
        raise InputError(f"-o {folder}: there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"-o {folder}: {error.strerror}") from error
    for name in demo.FILES:
        check_output(folder / name, args.force)
    editor = _load(args)
    with Progress(args.quiet) as progress:
        scores = demo.run(editor, folder, args.seed, progress)
    for name, values in scores.items():
        print(f"{name:13} PSNR to the truth {values['psnr']:.2f} dB")
    print(f"{folder}: {', '.join(demo.FILES)}")


def run_convert(args: argparse.Namespace) -> None:
    dtype = DTYPES[args.dtype] if args.dtype else None
    with tqdm(unit="B", unit_scale=True, desc="convert", disable=_silent(args.quiet)) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        convert(args.src, args.dst, loading.expected_shapes, dtype, args.force, progress)
    print(f"{args.dst}: ready for --weights")


def run_edit(args: argparse.Namespace) -> None:
    check_output(args.output, args.force, SUFFIXES)
    _not_an_input(args.output, args.video, args.frame)
    injection = anyv2v.Injection(args.conv, args.spatial, args.temporal)
    frame = read_image(args.frame)
    editor, source = _source(args)
    with Progress(args.quiet) as progress:
        edit = editor.edit(
            source,
            frame,
            args.prompt,
            negative_prompt=args.negative_prompt,
            steps=args.steps,
            start=args.start,
            guidance=args.guidance,
            injection=injection,
            random_ratio=args.random_ratio,
            fps=args.fps,
            seed=args.seed,
            fit=args.fit,
            on_step=progress("edit", args.steps - args.start),
        )
    write_video(args.output, edit.frames, edit.fps, args.force)
    _report(args.output, edit.frames, edit.fps)


def run_invert(args: argparse.Namespace) -> None:
    check_output(args.output, args.force, (SUFFIX,))
    _not_an_input(args.output, args.video)
    if _is_source(args.video):
        raise InputError(f"{args.video}: is inverted already")
    _, source = _source(args)
    source.save(args.output, args.force)
    _report(args.output, source.video.frames, source.video.fps)


def run_reconstruct(args: argparse.Namespace) -> None:
    if args.output:
        check_output(args.output, args.force, SUFFIXES)
        _not_an_input(args.output, args.video)
    editor, source = _source(args)
    with Progress(args.quiet) as progress:
        again = editor.reconstruct(
            source,
            args.prompt,
            args.negative_prompt,
            steps=args.steps,
            start=args.start,
            guidance=args.guidance,
            fps=args.fps,
            on_step=progress("reconstruct", args.steps - args.start),
        )
    clean = source.trajectory[0].to(again.latents.device)
    error = ((again.latents - clean).norm() / clean.norm()).item()
    print(
        f"PSNR {demo.psnr(again.frames, source.video.frames):.2f} dB · "
        f"relative error of the latents {error:.3g} · "
        f"{source.evaluations} UNet evaluations to invert"
    )
    if args.output:
        write_video(args.output, again.frames, again.fps, args.force)
        _report(args.output, again.frames, again.fps)


def _load(args: argparse.Namespace) -> Editor:
    if args.weights == loading.DEMO:
        print(f"anyv2v: {DEMO_NOTICE}", file=sys.stderr)
    dtype = DTYPES[args.dtype] if args.dtype else None
    return loading.load(args.weights, args.device, dtype)


def _source(args: argparse.Namespace) -> tuple[Editor, Source]:
    """The editor, and the source that VIDEO is or is inverted to; cheap checks come first."""
    loading.choose_device(args.device)
    if _is_source(args.video):
        fixed = ("size", "frames", "sample_fps", "start_time", "inversion_steps", "method")
        if given := [name for name in fixed if getattr(args, name) is not None]:
            option = given[0].replace("_", "-")
            raise InputError(f"--{option} is fixed by {args.video}; invert the video again")
        if not Path(args.video).is_file():
            raise InputError(f"{args.video}: no such file")
        editor = _load(args)
        return editor, editor.load_source(args.video)

    defaults, factor = loading.peek(args.weights)
    size = divisible(args.size or defaults.size, factor)
    video = read_video(
        args.video,
        size=size,
        frames=args.frames or defaults.frames,
        fps=defaults.fps if args.sample_fps is None else args.sample_fps,
        start_time=args.start_time or 0.0,
        fit=args.fit,
    )
    method = args.method or METHODS[0]
    steps = args.inversion_steps or 500
    editor = _load(args)
    with Progress(args.quiet) as progress:
        source = editor.invert(
            video,
            method=method,
            steps=steps,
            prompt=args.inversion_prompt,
            fps=args.fps,
            on_step=progress("invert", steps),
        )
    return editor, source


class Progress:
    """Bars on stderr, one per stage: progress(title, steps) gives what to call after each step."""

    def __init__(self, quiet: bool):
        self._disable, self._bars = _silent(quiet), ExitStack()

    def __call__(self, title: str, steps: int) -> Callable[..., None]:
        bar = self._bars.enter_context(tqdm(total=steps, desc=title, disable=self._disable))
        return lambda *_: bar.update() and None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self._bars.close()


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="anyv2v", description=anyv2v.__doc__)
    parser.add_argument("--version", action="version", version=f"anyv2v {anyv2v.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable, text: str, *groups: Callable) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        for group in groups:
            group(sub)
        sub.add_argument("--force", action="store_true", help="overwrite existing output")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        return sub

    sub = command("demo", run_demo, "edit a clip that is rendered here, and judge it", _model)
    sub.add_argument("-o", "--output", default="demo-out", metavar="DIR")
    sub.add_argument("--seed", type=_seed, default=0)

    sub = command("convert", run_convert, "turn published weights into a folder of ours")
    sub.add_argument("src", metavar="SRC", help="a Hugging Face folder of I2VGen-XL")
    sub.add_argument("dst", metavar="DST", help="the folder to write")
    sub.add_argument("--dtype", choices=DTYPES, help="of the weights written (default: SRC's)")

    sub = command("edit", run_edit, "edit a video", _model, _clip, _inversion, _sampling)
    sub.add_argument("--frame", required=True, metavar="IMAGE", help="the edited first frame")
    sub.add_argument("--prompt", required=True, metavar="TEXT", help="what the edit shows")
    sub.add_argument("-o", "--output", required=True, metavar="OUT.mp4")
    sub.add_argument("--guidance", type=_number, default=9.0)
    sub.add_argument("--negative-prompt", default=NEGATIVE_PROMPT, metavar="TEXT")
    for name, default in (("conv", 0.2), ("spatial", 0.2), ("temporal", 0.5)):
        text = f"part of the steps that inject {name} features (default {default})"
        sub.add_argument(f"--{name}", type=_number, default=default, metavar="0..1", help=text)
    sub.add_argument("--random-ratio", type=_number, default=0.0, metavar="0..1")
    sub.add_argument("--seed", type=_seed, default=0)

    sub = command("invert", run_invert, "invert a video for later edits", _model, _clip, _inversion)
    sub.add_argument("-o", "--output", required=True, metavar="SOURCE.safetensors")

    text = "a video there and back through the model"
    sub = command("reconstruct", run_reconstruct, text, _model, _clip, _inversion, _sampling)
    sub.add_argument("--prompt", default="", metavar="TEXT")
    sub.add_argument("--negative-prompt", default="", metavar="TEXT")
    sub.add_argument("--guidance", type=_number, default=1.0)
    sub.add_argument("-o", "--output", metavar="OUT.mp4")
    return parser


def _model(sub: argparse.ArgumentParser) -> None:
    default = os.environ.get("ANYV2V_WEIGHTS", loading.DEMO)
    text = "folder written by `anyv2v convert`, or demo (default: $ANYV2V_WEIGHTS, else demo)"
    sub.add_argument("--weights", default=default, metavar="DIR", help=text)
    sub.add_argument("--device", metavar="cpu|cuda", help="default: cuda if there is one")
    sub.add_argument("--dtype", choices=DTYPES, help="default: float16 on cuda, else float32")


def _clip(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("video", metavar="VIDEO", help="a video, or a source written by invert")
    sub.add_argument("--size", type=_size, metavar="WxH", help="default: the weights' own")
    sub.add_argument("--frames", type=_count, help="default: the weights' own")
    sub.add_argument("--sample-fps", type=_number, help="frames per second taken from the video")
    sub.add_argument("--start-time", type=_number, metavar="SECONDS")
    sub.add_argument("--fit", choices=FITS, default="crop", help="how pictures get to the size")


def _inversion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--method", choices=METHODS, help="of inversion")
    sub.add_argument("--inversion-steps", type=_count, metavar="N", help="default: 500")
    sub.add_argument("--inversion-prompt", default="", metavar="TEXT", help="describes the source")
    sub.add_argument("--fps", type=_count, default=8, help="frame rate that the network is told")


def _sampling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--steps", type=_count, default=50)
    sub.add_argument("--start", type=int, default=0, help="index of the first step that is run")


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 512x512")
    return int(width), int(height)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _is_source(path: str) -> bool:
    return Path(path).suffix.lower() == SUFFIX


def _not_an_input(output: str, *inputs: str) -> None:
    for path in inputs:
        if os.path.realpath(output) == os.path.realpath(path):
            raise InputError(f"-o {output}: is an input, which is never overwritten")


def _silent(quiet: bool) -> bool:
    return quiet or not sys.stderr.isatty()


def _report(path: str, frames, fps: float) -> None:
    count, height, width, _ = frames.shape
    print(f"{path}: {count} frames, {width}x{height}, {fps:g} fps")


def _is_cpu_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _fail(argv: Sequence[str], message: object, status: int) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(f"anyv2v: {' '.join(str(message).split())}", file=sys.stderr)
    return status
