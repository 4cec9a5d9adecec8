"""The options for editing the first frame, and the frame editor that they choose."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anyv2v.cli.clip import Clip, size_of
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor, FrameRequest
from anyv2v.frame_editors.registry import SETUP, describe, make
from anyv2v.frame_editors.run import candidates, request
from anyv2v.frame_editors.sheet import contact_sheet
from anyv2v.media.image import fit_frame, read_image
from anyv2v.media.mask import fit_mask, read_mask
from anyv2v.media.proportions import Size, check_fit
from anyv2v.runtime.atomic_files import atomic_path


class _List(argparse.Action):
    def __call__(self, parser, *_):
        print(describe())
        parser.exit()


def options(sub: argparse.ArgumentParser) -> None:
    """Adds the options of the frame editor, which makes the first frame if --frame is not given."""
    group = sub.add_argument_group("editor of the first frame")
    add = group.add_argument
    add("--editor", choices=EDITORS, help="what edits the frame; see anyv2v edit-frame --list")
    text = "text that says what to do with the frame"
    add("--instruction", action="append", metavar="TEXT", help=text)
    text = "picture of what the edit shall look like or contain"
    add("--reference", action="append", metavar="IMAGE", help=text)
    text = "picture that is white where the frame may change"
    add("--mask", action="append", metavar="IMAGE", help=text)
    text = "put back the pixels that the editor hardly changed"
    add("--keep-unchanged", action="store_true", help=text)
    text = "weights that the editor loads: a folder, or OWNER/NAME of the Hugging Face hub"
    add("--editor-weights", metavar="DIR", help=text)
    text = "any other option of the editor; may be given several times"
    add("--editor-option", action="append", metavar="NAME=VALUE", help=text)
    add(
        "--editor-command",
        metavar="'TOOL {input} {output} ...'",
        help="another program that edits the frame, run without a shell; {instruction}, "
        "{reference}, {mask} and {seed} are filled in, too",
    )
    text = "time that this program may take (default: 600)"
    add("--editor-timeout", metavar="SECONDS", help=text)
    add("--list", action=_List, nargs=0, help="list all editors with their options, and stop")


@dataclass(frozen=True)
class FirstFrame:
    """Where edited frames come from: files, or a frame editor and its inputs.

    Fields have the names of options. instruction, reference and mask hold one value for each edit,
    or one for all.
    """

    frame: list[str] | None = None
    keyframe: list[str] | None = None
    save_frame: list[str] | None = None
    editor: str | None = None
    instruction: list[str] | None = None
    reference: list[str] | None = None
    mask: list[str] | None = None
    keep_unchanged: bool = False
    editor_weights: str | None = None
    editor_option: list[str] | None = None
    editor_command: str | None = None
    editor_timeout: str | None = None
    fit: str | None = None
    seed: int = 0
    paper: bool = False

    def read(self, clip: Clip) -> list[tuple[np.ndarray, str]]:
        """Returns the frames of `--frame`, each with how it gets to the size of the clip.

        Frames are uint8 (h, w, 3) in their own sizes; the second of each pair is one of
        `media.image.FITS`. Raises InputError if a picture cannot be read, or if its proportions are
        those of neither the clip nor the target size and no `--fit` says what to do.
        """
        sizes = clip.sizes()  # first, as VIDEO comes first in the call
        return self._read(self.frame or [], sizes)

    def read_keyframes(self, clip: Clip, size: Size) -> dict[int, np.ndarray]:
        """Returns frame number -> picture of each `--keyframe`, fitted to `size` (width, height).

        Raises InputError as `read` does, and if two are of one frame.
        """
        found: dict[int, np.ndarray] = {}
        for text in self.keyframe or []:
            index, _, path = text.partition(":")
            if int(index) in found:
                raise InputError(f"--keyframe {text}: frame {index} is given twice")
            ((frame, fit),) = self._read([path], clip.sizes())
            found[int(index)] = fit_frame(frame, size, fit)
        return found

    def _read(self, paths: list[str], sizes: tuple[Size, Size]) -> list[tuple[np.ndarray, str]]:
        fit = self.fit or ("stretch" if self.paper else None)
        frames = [read_image(path) for path in paths]
        return [
            (frame, fit or check_fit(path, size_of(frame), *sizes))
            for path, frame in zip(paths, frames, strict=True)
        ]

    def make(
        self, editor: FrameEditor, frame: np.ndarray, count: int, clip: Clip
    ) -> list[tuple[np.ndarray, str]]:
        """Runs the frame editor on the first frame of the clip, for each of `count` edits.

        frame: that frame, uint8 (h, w, 3), at the size of the edit. Returns pairs of a frame,
        uint8 (h, w, 3) in the same size, and "crop". Writes the frames to the files of
        `--save-frame` if there are any, and prints their names.
        """
        requests = self.requests(editor, frame, count, clip.sizes()[0])
        frames = [candidates(editor, one, [self.seed], self.keep_unchanged)[0] for one in requests]
        for path, frame in zip(self.save_frame or [], frames, strict=False):
            write_picture(path, frame)
            print(path)
        return [(frame, "crop") for frame in frames]

    def make_editor(self, device: torch.device, dtype: torch.dtype | None) -> FrameEditor | None:
        """Makes the frame editor that the options choose, without loading its weights yet.

        None: no editor is chosen. device and dtype are those of its networks; dtype None leaves the
        choice to the editor. Raises InputError for an unknown or bad option, and for options of an
        editor where none is chosen.
        """
        options = {"weights": self.editor_weights, "timeout": self.editor_timeout}
        options |= {"command": self.editor_command}
        options = {name: value for name, value in options.items() if value is not None}
        name = self.editor or ("command" if self.editor_command else None)
        if name is None:
            others = ("instruction", "reference", "mask", "keep_unchanged", "editor_option")
            idle = [f"editor_{n}" for n in options] + [n for n in others if getattr(self, n)]
            if idle:
                raise InputError(
                    f"--{idle[0].replace('_', '-')} needs an --editor: one of {', '.join(EDITORS)}"
                )
            return None
        for text in self.editor_option or []:
            option, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"--editor-option {text!r} is not NAME=VALUE, such as seed=3")
            options[option.replace("-", "_")] = value
        return make(name, options, device=device, dtype=dtype)

    def requests(
        self, editor: FrameEditor, frame: np.ndarray, count: int, clip: Size
    ) -> list[FrameRequest]:
        """Returns what the editor is asked for, one request for each of `count` edits.

        frame: the frame to edit, uint8 (h, w, 3). clip: (width, height) of the clip's frames before
        `frame` was cropped and resized. Without --fit, a mask with the clip's proportions is
        cropped in the same way, and one with the frame's is only resized. Raises InputError if an
        input cannot be read or is missing, or if an option is given neither once nor `count` times.
        """
        size = (frame.shape[1], frame.shape[0])
        given = [
            _each(count, name, getattr(self, name)) for name in ("instruction", "reference", "mask")
        ]
        return [
            request(
                editor,
                frame,
                instruction or "",
                reference,
                None if mask is None else self._mask(mask, size, clip),
            )
            for instruction, reference, mask in zip(*given, strict=True)
        ]

    def _mask(self, path: str, size: Size, clip: Size) -> np.ndarray:
        """A mask cut as the frame was, or as it is if it has the frame's proportions already."""
        mask = read_mask(path)
        own = mask.shape[1], mask.shape[0]
        return fit_mask(mask, size, self.fit or check_fit(f"--mask {path}", own, clip, size))


def uses(editor: FrameEditor | None) -> frozenset[str]:
    """Returns the names of the options that change what a frame editor does.

    They are of "instruction", "reference", "seed", "device" and "dtype"; none for no editor.
    """
    if editor is None:
        return frozenset()
    names = getattr(editor, "uses", frozenset({"instruction", "reference", "seed"}))
    return names.union(name for name in SETUP if hasattr(editor, name))


def frame_files(output: str, count: int) -> list[str]:
    """Returns the paths that `edit-frame` writes: for one candidate just `output`, FRAME.png.

    For several, FRAME-1.png, FRAME-2.png, ... and the contact sheet FRAME-sheet.png follow.
    """
    stem, suffix = os.path.splitext(output)
    names = [*range(1, count + 1), "sheet"] if count > 1 else []
    return [output, *(f"{stem}-{name}{suffix}" for name in names)]


def write_candidates(
    output: str, frame: np.ndarray, found: Sequence[np.ndarray], seed: int
) -> list[str]:
    """Writes edited frames as the files of `frame_files`; returns their paths.

    output: path of the first candidate. frame: the frame before the edit, shown on the contact
    sheet. found: the candidates. All are uint8 (h, w, 3) of one size. seed: the seed of the first
    candidate, from which those on the sheet are counted.
    """
    files = frame_files(output, len(found))
    labels = ["source", *(f"{i + 1}: seed {seed + i}" for i in range(len(found)))]
    shown = [found[0]]
    if len(found) > 1:
        shown += [*found, contact_sheet([frame, *found], labels)]
    for file, picture in zip(files, shown, strict=True):
        write_picture(file, picture)
    return files


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (h, w, 3), as PNG; the file appears whole or not at all."""
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(picture).save(temporary)


def _each(count: int, name: str, given: list[str] | None) -> list[str | None]:
    """The value of each of `count` edits: none, the same for all, or its own."""
    values: list[str | None] = [*given] if given else [None]
    if len(values) not in (1, count):
        raise InputError(
            f"--{name} is given {len(values)} times for {count} edits; give 1 or {count}"
        )
    return values * (count // len(values))
