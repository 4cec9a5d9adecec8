"""The commands, their options, and what `--help` says of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from anyv2v.cli import first_frame
from anyv2v.cli.model import OFFLOADS
from anyv2v.cli.parser import ByName, Commands, Parser
from anyv2v.cli.values import (
    SOURCE,
    above_0,
    byte_count,
    count_or_all,
    fraction,
    from_0,
    from_1,
    keyframe,
    name_and_value,
    number,
    numbers_by_name,
    rate_or_source,
    scales,
    size,
    whole_size,
)
from anyv2v.convert.repositories import PUBLISHED
from anyv2v.diffusion.inversion import METHODS, TOLERANCE
from anyv2v.injection.fractions import USUAL
from anyv2v.injection.presets import PRESETS
from anyv2v.media.image import FITS
from anyv2v.pipeline.inverting import STEPS
from anyv2v.weights.demo.scenes import BEST_FIRST, CLEAR
from anyv2v.weights.packaged import DEMO, PACKAGED

WORDS = f"the word {' or '.join(PACKAGED)}"
"""The names of weights that come with the package, for help texts."""
DTYPE_NAMES = ("float32", "float16", "bfloat16")
"""Values of --dtype."""
OF_WEIGHTS = "(default: the weights' own; for I2VGen-XL {})"
"""Template of a default in help texts; the value to fill in is that of I2VGen-XL."""


def parser(commands: dict[str, Callable[[argparse.Namespace], None]]) -> Parser:
    """Returns the parser of all commands; `run` of its namespaces is the function of the command.

    commands: name of a command -> its function. The namespace also has `given`, the names of the
    options that were given on the command line or, with another value than the default, in the file
    of --config, `filed`, the names of those among them that are in the file alone, `sharing`, a
    `sharing.Shared` for commands that a batch or a page runs, else None, and `progress`, a
    `Progress` for those that a page runs, else None.
    """
    made = Commands(commands)
    # a batch needs only the parsers of the commands that it runs
    described = {
        "demo": _demo,
        "convert": _convert,
        "weights fetch": _weights,
        "edit": _edit,
        "batch": _batch,
        "compare": _compare,
        "edit-frame": _edit_frame,
        "plan": _plan,
        "invert": _invert,
        "reconstruct": _reconstruct,
        "evaluate": _evaluate,
        "info": _info,
        "ui": _ui,
    }
    for name, describe in described.items():
        if name in commands:
            describe(made)
    return made.finish()


def _demo(commands: Commands) -> None:
    sub = commands.add("demo", "Edit a clip that is rendered here, and judge the edit.", _model)
    add = sub.add_argument_group("demo").add_argument
    add("-o", "--output", default="demo-out", metavar="DIR", help="folder of the results")
    text = "what the edit changes; first the kinds that work best"
    add("--kind", choices=BEST_FIRST, default=BEST_FIRST[0], help=text)
    text = f"seed of the clip and of the noise (default: {CLEAR}, an edit that is seen clearly)"
    add("--seed", type=from_0, default=CLEAR, metavar="N", help=text)


def _convert(commands: Commands) -> None:
    sub = commands.add("convert", "Convert published weights into a folder that --weights takes.")
    add = sub.add_argument_group("convert").add_argument
    text = "folder of I2VGen-XL, ConsistI2V, SEINE or Wan 2.2 as it is published; "
    text += "also Stable Diffusion 1.5, InstructPix2Pix, files of adapters, and CLIP"
    add("src", metavar="SRC", help=text)
    add("dst", metavar="DST", help="folder to write")
    text = "dtype of the weights that are written (default: that of SRC)"
    add("--dtype", choices=DTYPE_NAMES, help=text)


def _weights(commands: Commands) -> None:
    commands.group("weights", "Verify a folder of weights, or download one.")
    sub = commands.add("weights verify", "Read a folder of weights whole and say what it is.")
    add = sub.add_argument_group("verify").add_argument
    text = f"folder written by `anyv2v convert`, {WORDS}, or OWNER/NAME of the hub"
    add("dir", metavar="DIR", help=text)
    sub = commands.add("weights fetch", "Download a published model and convert it.")
    add = sub.add_argument_group("fetch").add_argument
    text = f"{', '.join(PUBLISHED)} (default: the first, also where DST stands alone), or "
    text += "OWNER/NAME or OWNER/NAME@REVISION of a repository of the Hugging Face hub"
    add("name", metavar="NAME", nargs="?", help=text)
    add("dst", metavar="DST", nargs="?", help="folder to write (default: NAME)")
    text = "dtype of the weights that are written "
    text += "(default: float16, of Wan bfloat16, of a CLIP the published one)"
    add("--dtype", choices=DTYPE_NAMES, help=text)


def _edit(commands: Commands) -> None:
    text = (
        "Edit a video: carry an edited first frame through it. "
        "--frame (or --instruction), --prompt and -o are given once for each of several edits."
    )
    usage = "anyv2v edit VIDEO --frame IMAGE --prompt TEXT -o OUT.mp4 [options]"
    sub = commands.add("edit", text, _clip, usage=usage)
    add = sub.add_argument_group("what is edited").add_argument
    text = "edited first frame; required unless an --editor or --editor-command makes it"
    add("--frame", action="append", metavar="IMAGE", help=text)
    text = "text that describes the edited video"
    add("--prompt", action="append", required=True, metavar="TEXT", help=text)
    text = "edited video: .mp4, .mkv, .mov, or pictures such as frames/%%05d.png"
    add("-o", "--output", action="append", required=True, metavar="OUT.mp4", help=text)
    text = "file for the first frame that an --editor makes, once for each -o"
    add("--save-frame", action="append", metavar="FRAME.png", help=text)
    add = _sampling(sub)
    _guidance(add)
    text = f"text that guidance leads away from {OF_WEIGHTS.format('that of the AnyV2V code')}"
    add("--negative-prompt", metavar="TEXT", help=text)
    text = "share of random noise in the noise that sampling starts from"
    add("--random-ratio", type=fraction, default=0.0, metavar="0..1", help=text)
    text = "seed of random noise, and of the editor of the first frame"
    add("--seed", type=from_0, default=0, metavar="N", help=text)
    for group in (_whole_clip, _injection, _inversion, first_frame.options, _model):
        group(sub)


def _batch(commands: Commands) -> None:
    text = (
        "Make many edits of many clips, told by a file. "
        "What is done is skipped, so that a run that ended early is simply run again; what fails "
        "is written to DIR/failed.jsonl and stops nothing."
    )
    usage = "anyv2v batch (JOBS | --anyv2v TEMPLATE GROUP) -o DIR [options]"
    sub = commands.add("batch", text, usage=usage)
    add = sub.add_argument_group("batch").add_argument
    text = "clips and their edits: YAML, or JSON lines"
    add("jobs", metavar="JOBS", nargs="?", help=text)
    text = "the same from files of the AnyV2V code: a template and, if there is one, a group file"
    add("--anyv2v", nargs="+", metavar=("TEMPLATE", "GROUP"), help=text)
    text = "folder of the outputs; made if it is missing"
    add("-o", "--output", required=True, metavar="DIR", help=text)
    add("--limit", type=from_1, metavar="N", help="do the first N clips only")
    text = "do part I of N, counted from 0, of the clips (default: as RANK and WORLD_SIZE of "
    text += "torchrun or SLURM_ARRAY_TASK_ID and _COUNT say, else all)"
    add("--shard", metavar="I/N", help=text)
    _engine(add)
    text = "print what would be done, what is done, and what it costs; do nothing"
    add("--dry-run", action="store_true", help=text)
    _model(sub)


def _engine(add: Callable[..., argparse.Action]) -> None:
    text = "local: processes on this machine; ray: actors of Ray, here or on the cluster of the "
    text += "environment variable RAY_ADDRESS"
    add("--engine", choices=("local", "ray"), default="local", help=text)
    text = "number of processes or actors (default: one for each GPU, or one)"
    add("--workers", type=from_1, metavar="N", help=text)


def _compare(commands: Commands) -> None:
    text = (
        "Compare methods and editors of the first frame on a benchmark. "
        "BENCH has a folder for each clip with clip.mp4 and edits/NAME/prompt.txt, frame.png; "
        "docs/evaluate.md describes the layout. The first method and the first editor are those "
        "that the others are compared with. A run that ended early is simply run again."
    )
    usage = "anyv2v compare BENCH -o DIR [options]"
    sub = commands.add("compare", text, usage=usage)
    add = sub.add_argument_group("comparison").add_argument
    add("bench", metavar="BENCH", nargs="?", help="folder of clips and edits")
    text = "folder of the outputs, the table, the scores and the page; made if it is missing"
    add("-o", "--output", required=True, metavar="DIR", help=text)
    text = "editors of the first frame: given (frame.png), true (the truth's), or names that "
    text += "edit-frame --list shows (default: given)"
    add("--editors", metavar="NAME,...", help=text)
    text = "an editor with options, such as 'ip2p=instruct-pix2pix weights=DIR steps=50'; "
    text += "may be given several times"
    add("--editor", action="append", metavar="'NAME=EDITOR ...'", help=text)
    text = "ours (the weights' defaults), paper, plain, protected, guided, guided-protected, or "
    text += "without a network: static, source, warp, difference, copy (default: ours,paper,copy)"
    add("--methods", metavar="NAME,...", help=text)
    text = "another method: options of anyv2v edit, such as 'soft=--conv 0.5', or the command of a "
    text += "tool with {video} or {frames}, {frame}, {prompt}, {seed}, and {output} or "
    text += "{output_frames}; may be given several times"
    add("--method", action="append", metavar="'NAME=...'", help=text)
    text = "only the first editor with every method, and every editor with the first method"
    add("--star", action="store_true", help=text)
    add("--limit", type=from_1, metavar="N", help="take the first N clips only")
    text = "seed of edits and editors, of the intervals, and of what shuffles the blind page"
    add("--seed", type=from_0, default=0, metavar="N", help=text)
    text = "write DIR/blind, a page on which people choose between the first method and these, "
    text += "without being told which is which; DIR/key.json tells"
    add("--blind", metavar="NAME,...", help=text)
    text = "count the answers that people downloaded from the page; may be given several times"
    add("--answers", action="append", metavar="FILE", help=text)
    text = "score by a CLIP: a folder of one, as it is published or as `anyv2v convert` wrote it, "
    text += "or OWNER/NAME of the Hugging Face hub, such as openai/clip-vit-base-patch32"
    add("--clip", metavar="DIR", help=text)
    text = "time that a tool may take for a clip"
    add("--tool-timeout", type=above_0, default=3600.0, metavar="SECONDS", help=text)
    _engine(add)
    _reading(sub.add_argument_group("clips").add_argument)
    _model(sub)


def _edit_frame(commands: Commands) -> None:
    text = "Edit the first frame alone, to look at it before the video is edited."
    usage = "anyv2v edit-frame VIDEO|IMAGE --editor NAME -o FRAME.png [options]"
    sub = commands.add("edit-frame", text, _first_frame, first_frame.options, usage=usage)
    add = sub.add_argument_group("output").add_argument
    text = "edited frame, which `anyv2v edit --frame` takes"
    add("-o", "--output", required=True, metavar="FRAME.png", help=text)
    text = "number of edits, each with the next seed; with a contact sheet if there are several"
    add("--candidates", type=from_1, default=1, metavar="N", help=text)
    add("--seed", type=from_0, default=0, metavar="N", help="seed of the first candidate")
    _machine(sub.add_argument_group("machine"))


def _plan(commands: Commands) -> None:
    text = "Predict the memory and operations of an edit, without running it."
    usage = "anyv2v plan VIDEO [options]"
    sub = commands.add("plan", text, _clip, usage=usage)
    _guidance(_sampling(sub))
    text = "number of edits in one batch, as Editor.edit_many runs them"
    sub.add_argument("--edits", type=from_1, default=1, metavar="N", help=text)
    _windows(sub.add_argument_group("long clips").add_argument)
    for group in (_injection, _inversion, _model):
        group(sub)


def _invert(commands: Commands) -> None:
    text = "Invert a video once, for many edits of it."
    usage = "anyv2v invert VIDEO -o SOURCE.safetensors [options]"
    sub = commands.add("invert", text, _clip, usage=usage)
    add = sub.add_argument_group("output").add_argument
    text = "file of the source, which `anyv2v edit` takes as VIDEO"
    add("-o", "--output", required=True, metavar="SOURCE.safetensors", help=text)
    text = "save with the source the features that edits with these settings inject"
    add("--features", action="store_true", help=text)
    text = "go on where an interrupted inversion to the same file was"
    add("--resume", action="store_true", help=text)
    text = "also sample the source again, to tell and to save how near it comes"
    add("--round-trip", action="store_true", help=text)
    for group in (_inversion, _injection, _model):
        group(sub)


def _reconstruct(commands: Commands) -> None:
    text = "Invert a video and sample it again without an edit, to see what the model keeps of it."
    usage = "anyv2v reconstruct VIDEO [options]"
    sub = commands.add("reconstruct", text, _clip, usage=usage)
    add = sub.add_argument_group("output").add_argument
    add("-o", "--output", metavar="OUT.mp4", help="reconstructed video (default: none is written)")
    add = _sampling(sub)
    add("--prompt", default="", metavar="TEXT", help="text that describes the video")
    text = "text that guidance leads away from (default: none)"
    add("--negative-prompt", metavar="TEXT", help=text)
    _guidance(add, "(default: 1)")
    for group in (_inversion, _model):
        group(sub)


def _evaluate(commands: Commands) -> None:
    text = (
        "Score an edited clip, or all those of a batch: how much of the background, of the motion "
        "and of the true result it keeps. What is not given is taken from the sidecar of the clip."
    )
    usage = "anyv2v evaluate OUT [options]"
    sub = commands.add("evaluate", text, usage=usage)
    add = sub.add_argument_group("what is scored").add_argument
    text = "an edited clip, or a folder below which clips lie with their sidecars"
    add("out", metavar="OUT", help=text)
    add("--source", metavar="SRC", help="clip before the edit, or its inversion")
    add("--truth", metavar="CLIP", help="clip after the edit as it should be, if there is one")
    add("--frame", metavar="IMAGE", help="edited first frame")
    add("--prompt", metavar="TEXT", help="text that describes the edited clip")
    text = "picture or clip that is black where the edit may change nothing "
    add("--mask", metavar="MASK", help=text + "(default: found from the edited first frame)")
    text = "size in pixels at which clips are compared (default: that of OUT)"
    add("--size", type=whole_size, metavar="WxH", help=text)
    add = sub.add_argument_group("further scores").add_argument
    text = "score by a CLIP: a folder of one, as it is published or as `anyv2v convert` wrote it, "
    text += "or OWNER/NAME of the Hugging Face hub, such as openai/clip-vit-base-patch32"
    add("--clip", metavar="DIR", help=text)
    text = "score by LPIPS (pip install '.[lpips]')"
    add("--lpips", action="store_true", help=text)
    text = "invert the source, sample it again, and score what comes back"
    add("--round-trip", action="store_true", help=text)
    text = "the same for a clip of the edited first frame; and score how well the places of that "
    text += "frame are found again, and how far the latents of the frames move"
    add("--checks", action="store_true", help=text)
    add = sub.add_argument_group("output").add_argument
    text = "folder for scores.json, scores.csv, and index.html, which shows the clips"
    add("-o", "--output", metavar="DIR", help=text + " (default: the scores are only printed)")
    _model(sub)


def _info(commands: Commands) -> None:
    text = (
        "Print what a report of a fault should tell: versions, GPU, kernels, weights, caches. "
        "It says which kernel runs what and why, and writes the user's folder as ~."
    )
    sub = commands.add("info", text)
    add = sub.add_argument_group("info").add_argument
    text = f"weights to tell of, and whose kernels: a folder, {WORDS}, or OWNER/NAME of the "
    text += "Hugging Face hub"
    add("dir", metavar="DIR", nargs="?", help=text)
    add("--json", action="store_true", help="print a JSON object, with every kernel's reasons")


def _ui(commands: Commands) -> None:
    text = (
        "Serve a page on which clips are edited in the browser. "
        "It runs on this machine alone, and what is uploaded is removed when it ends."
    )
    sub = commands.add("ui", text, usage="anyv2v ui [options]")
    add = sub.add_argument_group("page").add_argument
    text = "address at which it is served; one that other machines reach serves them, too"
    add("--host", default="127.0.0.1", metavar="HOST", help=text)
    add("--port", type=from_1, default=7860, metavar="N", help="port at which it is served")
    text = "an editor of the first frame with its weights, which is offered besides those without, "
    text += "such as 'ip2p=instruct-pix2pix weights=DIR'; may be given several times"
    add("--editor", action="append", metavar="'NAME=EDITOR ...'", help=text)
    _model(sub)


def _model(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("weights and machine")
    group.add_argument(
        "--weights",
        default=os.environ.get("ANYV2V_WEIGHTS") or DEMO,
        metavar="DIR",
        help=f"folder written by `anyv2v convert`; {WORDS} for a small model "
        "that is part of the package; or OWNER/NAME[@REVISION] of a repository of the Hugging "
        "Face hub, such as ali-vilab/i2vgen-xl, which is downloaded and converted on its first "
        "use; the environment variable ANYV2V_WEIGHTS changes the default",
    )
    _machine(group)
    text = "whether the text and vision towers and the VAE encoder wait in host memory while they "
    text += "are not needed; auto: if the GPU's memory is short"
    group.add_argument("--offload", choices=list(OFFLOADS), default="auto", help=text)


def _machine(group: argparse._ArgumentGroup) -> None:
    text = "where networks run (default: cuda if there is a GPU)"
    group.add_argument("--device", metavar="cpu|cuda", help=text)
    text = "dtype that networks run in (default: float16, of Wan bfloat16, on cuda, float32 on cpu)"
    group.add_argument("--dtype", choices=DTYPE_NAMES, help=text)


def _clip(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("video").add_argument
    add("video", metavar="VIDEO", help="a video, or a source that `anyv2v invert` wrote")
    _reading(add)


def _reading(add: Callable[..., argparse.Action]) -> None:
    text = "size of the frames in pixels, or N for the shorter side, in the clip's proportions "
    add("--size", type=size, metavar="WxH|N", help=text + OF_WEIGHTS.format("512x512"))
    text = f"number of frames that are taken, or all {OF_WEIGHTS.format(16)}"
    add("--frames", type=count_or_all, metavar="N|all", help=text)
    text = "frames that are taken per second of the video, or source for each of its frames "
    add("--sample-fps", type=rate_or_source, metavar="FPS|source", help=text + OF_WEIGHTS.format(8))
    text = "time of the first frame that is taken (default: 0)"
    add("--start-time", type=number, metavar="SECONDS", help=text)
    text = (
        "how the clip and --frame get to the size; pad adds black bars, which stay in the result "
        "(default: crop; a --frame that has the size's proportions is taken whole)"
    )
    add("--fit", choices=FITS, help=text)


def _windows(add: Callable[..., argparse.Action]) -> None:
    text = "frames of one window; a longer clip is edited window by window, and with 0 all at once "
    add("--window", type=from_0, metavar="N", help=text + OF_WEIGHTS.format(16))
    text = "frames that neighboring windows share and that are cross-faded (default: a quarter)"
    add("--shared", type=from_0, metavar="N", help=text)


def _whole_clip(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("long clips, and what is not edited").add_argument
    _windows(add)
    text = (
        "another edited frame: its index among the frames that are taken, counted from 0, and the "
        "picture; may be given several times"
    )
    add("--keyframe", action="append", type=keyframe, metavar="INDEX:IMAGE", help=text)
    text = (
        "put back the source's pixels where the edit left the clip alone: auto finds out where, a "
        "picture or a clip is white where the clip may change "
        "(default: auto if the weights are known to gain by it, else off)"
    )
    add("--protect", metavar="auto|off|MASK", help=text)
    text = (
        "where sampling starts: off is the inverted source; auto moves it by a guess of the edit "
        "from features of the network, patches by one from pixels, a clip by that rough edit; "
        "--start is then by default 0.08 of the steps for auto, 0.3 for the others "
        "(default: on for weights that are known to gain by it, else off)"
    )
    add("--guide", metavar="auto|patches|off|CLIP", help=text)
    text = (
        "size of what is written; source: size, timestamps and sound of VIDEO, whose frames are "
        "then all edited unless --frames or --sample-fps says otherwise (default: edited)"
    )
    add("--out-size", choices=("edited", SOURCE), default="edited", help=text)
    text = "go on where an interrupted edit of a long clip to the same file was"
    add("--resume", action="store_true", help=text)


def _first_frame(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("frame").add_argument
    add(
        "video", metavar="VIDEO|IMAGE", help="video or source whose first frame is edited, or image"
    )
    text = "size in pixels, or N for the shorter side, in its proportions (default: its own)"
    add("--size", type=size, metavar="WxH|N", help=text)
    text = "time of the frame in the video (default: 0)"
    add("--start-time", type=number, metavar="SECONDS", help=text)
    text = "how the frame, and a mask with it, get to the size; pad adds black bars (default: crop)"
    add("--fit", choices=FITS, help=text)


def _inversion(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("inversion").add_argument
    text = "how the video is inverted: fixed-point solves each DDIM step exactly, ddim is the "
    text += f"original's approximation (default: {next(iter(METHODS))})"
    add("--method", choices=METHODS, help=text)
    text = f"steps of the inversion (default: {STEPS['ddim']} for ddim, --steps for fixed-point)"
    add("--inversion-steps", type=from_1, metavar="N", help=text)
    text = (
        f"relative residual at which fixed-point has solved a step {OF_WEIGHTS.format(TOLERANCE)}"
    )
    add("--tolerance", type=above_0, metavar="X", help=text)
    text = "text that describes the video as it is (default: none)"
    add("--inversion-prompt", metavar="TEXT", help=text)
    text = f"frame rate that the network is conditioned on {OF_WEIGHTS.format(8)}"
    add("--fps", type=from_1, metavar="FPS", help=text)
    text = "an option of the backbone, such as frame_stride=3; may be given several times"
    add("--option", action="append", type=name_and_value, metavar="NAME=VALUE", help=text)
    text = (
        "settings of the AnyV2V paper and nothing of this project's: --method ddim "
        "--inversion-steps 500, no --inversion-prompt, --steps 50, --guidance 9, its negative "
        "prompt, --conv 0.2 --spatial 0.2 --temporal 0.5 (other backbones: as their originals), "
        "--frame stretched to the clip's size, the source in the batch of every step, no recorded "
        "features, --window 0 --protect off --guide off; options that are given besides have "
        "precedence"
    )
    add("--paper", action="store_true", help=text)


def _sampling(sub: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    add = sub.add_argument_group("sampling").add_argument
    text = f"number of sampling steps {OF_WEIGHTS.format(50)}"
    add("--steps", type=from_1, metavar="N", help=text)
    text = f"index of the first step that is run; 0 is the noisiest {OF_WEIGHTS.format(0)}"
    add("--start", type=from_0, metavar="N", help=text)
    return add


def _guidance(add: Callable[..., argparse.Action], default: str = OF_WEIGHTS.format(9)) -> None:
    text = "scale of classifier-free guidance, 1 for none; or one for each scale of the backbone, "
    text += f"such as text=35,image=1 {default}"
    add("--guidance", action=ByName, type=scales, metavar="X", help=text)


def _injection(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("injection").add_argument
    text = (
        "fractions of the steps and --start as in the edits of a kind that AnyV2V published, for "
        "what is not given below; also with --paper (default: none)"
    )
    add("--preset", choices=PRESETS, help=text)
    kinds = ("residual features", "spatial attention", "temporal attention")
    for name, kind, default in zip(USUAL, kinds, (0.2, 0.2, 0.5), strict=True):
        text = f"share of the steps, from the noisiest on, that inject {kind} of the source "
        add(f"--{name}", type=number, metavar="0..1", help=text + OF_WEIGHTS.format(default))
    text = "the same for any injection groups of the backbone, such as conv=0.2,cross=0"
    add("--inject", action=ByName, type=numbers_by_name, metavar="NAME=0..1,...", help=text)
    text = (
        "memory for recorded features of the source, such as 12GB; with 0 none are recorded and "
        "the source is in the batch instead (default: half of what is free)"
    )
    add("--feature-memory", type=byte_count, metavar="BYTES", help=text)
