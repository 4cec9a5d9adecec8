"""The files that a command writes: checked before the work, written whole, reported after it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from anyv2v import loading
from anyv2v.cli.clip import size_of
from anyv2v.cli.sidecar import beside, check_sidecar, comment
from anyv2v.errors import InputError
from anyv2v.media.sequence import check_sequence_output, writes_sequence
from anyv2v.media.video import SUFFIXES, pyav, write_video
from anyv2v.pipeline.request import Edit
from anyv2v.runtime.atomic_files import check_output


def check(args: argparse.Namespace, path: str, suffixes: tuple[str, ...], *inputs: str) -> None:
    """InputError if an output cannot be written or is one of the command's inputs."""
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
            pyav()  # else its absence would be found when all is computed
    check_sidecar(path, args.force)


def write(path: str, edit: Edit, facts: dict, force: bool) -> None:
    """Writes a video and its sidecar; facts: what the sidecar says."""
    with beside(path, facts):
        write_video(path, edit.frames, edit.fps, force, comment(facts))


def report(path: str, frames: np.ndarray, fps: float) -> None:
    """Prints what was written: frames uint8 (f, h, w, 3) and their rate."""
    width, height = size_of(frames[0])
    print(f"{path}: {len(frames)} frames, {width}x{height}, {fps:g} fps")
