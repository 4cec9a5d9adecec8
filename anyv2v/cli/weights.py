"""`anyv2v convert`, `anyv2v weights verify` and `anyv2v weights fetch`."""

from __future__ import annotations

import argparse
import sys

from anyv2v import weights_folders
from anyv2v.cli.arguments import typed
from anyv2v.cli.console import say, tell
from anyv2v.cli.model import Model
from anyv2v.cli.source import progress_of, without_effect
from anyv2v.convert.fetch import asked, fetch
from anyv2v.convert.published import convert
from anyv2v.convert.repositories import ADAPTER, EDITOR, SCORES, VIDEOS
from anyv2v.errors import InputError
from anyv2v.weights import hub
from anyv2v.weights.manifest import CLIP
from anyv2v.weights.packaged import PACKAGED


def run_convert(args: argparse.Namespace) -> None:
    """Runs `anyv2v convert`: converts published weights, SRC, to a folder for --weights, DST.

    Weights of a frame editor become a folder for --editor-weights, or for an option of the editor;
    those of a CLIP become one for --clip.
    """
    check_name(args.dst)
    with progress_of(args) as progress:
        done = progress.bytes("convert")
        shapes = weights_folders.expected_shapes
        config = convert(
            args.src, args.dst, shapes, typed(Model, args).torch_dtype, args.force, done
        )
    if snapshot := hub.snapshots(args.src):
        say(f"{args.src} {hub.DESCRIPTION}: {snapshot[0]} was read")
    print(f"{args.dst}: ready for {option_of(config, args.dst)}")


def run_verify(args: argparse.Namespace) -> None:
    """Runs `anyv2v weights verify`: reads all of a weights folder and prints what it holds."""
    with progress_of(args) as progress:
        report = weights_folders.inspect(args.dir, progress.bytes("verify"))
    tell(without_effect(args))
    print(report)


def run_fetch(args: argparse.Namespace) -> None:
    """Runs `anyv2v weights fetch`: downloads a published model and converts it to a folder, DST."""
    name, dst = asked(args.name, args.dst)
    check_name(dst)
    # the library that downloads shows bars of its own, which are for terminals only
    dtype, no_bars = typed(Model, args).torch_dtype, args.quiet or not sys.stderr.isatty()
    with progress_of(args) as progress:
        done = progress.bytes("convert")
        shapes = weights_folders.expected_shapes
        folders = fetch(name, dst, shapes, dtype, args.force, done, no_bars)
        report = weights_folders.inspect(dst, progress.bytes("verify"))
    print(report)
    where = " and ".join(map(str, folders))
    option = option_of(report.checkpoint.config, dst)
    print(f"{dst}: ready for {option}; the download in {where} is no longer needed")


def check_name(folder: str) -> None:
    """Raises InputError if --weights would not take `folder` for the folder of that name."""
    if folder in PACKAGED:
        raise InputError(f"{folder}: is the name of weights of the package; write ./{folder}")


def option_of(config: dict, folder: str) -> str:
    """Returns the option that takes weights, with its value where that is not just the folder.

    config: the content of their config.json. folder: where they are.
    """
    if "adapter" in config:
        return f"{ADAPTER}={folder}"
    if config.get("model") == CLIP:
        return SCORES
    return EDITOR if "model" in config else VIDEOS
