"""The files that the page of `anyv2v ui` offers besides those that a command writes."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v.backbones.base import Defaults
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip
from anyv2v.cli.demo import FIRST, SHOWN
from anyv2v.cli.demo_pictures import enlarged
from anyv2v.cli.first_frame import write_picture
from anyv2v.cli.sidecar import sidecar_of
from anyv2v.cli.values import SOURCE
from anyv2v.media.image import fit_frame
from anyv2v.media.video import stream_video, write_video
from anyv2v.media.writer import video_writer
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import BEST_FIRST, CLEAR, draw_edit
from anyv2v.weights.demo.scores import Truth

EXAMPLE, EXAMPLE_FRAME = "example.mp4", "example-frame.png"
"""Names of the example's files."""
LARGEST = 1024
"""The most pixels of a picture's longer side that the page shows."""


def write_example(folder: Path, own: Defaults) -> str:
    """Renders a clip and its edited first frame into a folder; returns the prompt of the edit.

    own: the defaults of the weights, whose size, number of frames and rate the clip has.
    """
    wanted = draw_edit(BEST_FIRST[0], "held-out", FIRST + CLEAR)
    truth = Truth.of(wanted, own.size, own.frames)
    write_video(folder / EXAMPLE, enlarged(truth.source, SHOWN), own.fps)
    write_picture(folder / EXAMPLE_FRAME, enlarged(truth.frames[:1], SHOWN)[0])
    return wanted.truth.caption


def write_shown(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 RGB (h, w, 3), as PNG, no larger than the page shows it."""
    height, width, _ = picture.shape
    if max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = fit_frame(picture, size, "stretch")
    write_picture(path, picture)


def write_side_by_side(args: argparse.Namespace, path: Path) -> None:
    """Writes a clip that shows the source to the left of its edit, frame by frame.

    args: the options of the command that has made the edit.
    """
    reading = typed(Clip, args).reading()
    if args.out_size == SOURCE:
        reading |= {"size": None, "fit": "crop"}
    with stream_video(args.video, **reading) as before, stream_video(args.output[0]) as after:
        # H.264 has even sizes only, so the edit may have a row more
        width, height = map(min, before.size, after.size)
        with video_writer(path, (2 * width, height), after.fps) as writer:
            for left, right in zip(before, after, strict=False):
                both = [left[:height, :width], right[:height, :width]]
                writer.write(np.concatenate(both, axis=1))


def name_only(output: Path) -> None:
    """Takes the folder of an output from its sidecar, so that files are told by their names."""
    sidecar, folder = sidecar_of(output), f"{output.parent}{os.sep}"
    facts = _named(json.loads(sidecar.read_text(encoding="utf-8")), folder)
    with atomic_path(sidecar) as temporary:
        text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _named(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _named(each, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_named(each, folder) for each in value]
    return value.removeprefix(folder) if isinstance(value, str) else value
