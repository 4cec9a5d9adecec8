"""The options of editing the first frame, and the editor that they ask for."""

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
from anyv2v.media.frames import Video
from anyv2v.media.image import read_image
from anyv2v.media.mask import fit_mask, read_mask
from anyv2v.media.proportions import Size, check_fit
from anyv2v.runtime.atomic_files import atomic_path


class _List(argparse.Action):
    def __call__(self, parser, *_):
        print(describe())
        parser.exit()


def options(sub: argparse.ArgumentParser) -> None:
    """The options of an editor, without which `anyv2v edit` is given a --frame."""
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
    add("--editor-weights", metavar="DIR", help="folder of the weights that the editor loads")
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
    """Where the edited first frame comes from: files, or an editor and what it is asked.

    instruction, reference and mask are given once for each edit, or once for all.
    """

    frame: list[str] | None = None
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
        """The frames of `--frame`, uint8 (h, w, 3), and how each gets to the size of the clip."""
        fit = self.fit or ("stretch" if self.paper else None)
        frames = [read_image(path) for path in self.frame or []]
        return [
            (frame, fit or check_fit(path, size_of(frame), *clip.sizes()))
            for path, frame in zip(self.frame or [], frames, strict=True)
        ]

    def make(
        self, editor: FrameEditor, video: Video, count: int, clip: Clip
    ) -> list[tuple[np.ndarray, str]]:
        """The frames that the editor makes for `count` edits, of the clip's size; saves them.

        The names of the files that are written are printed.
        """
        requests = self.requests(editor, video.frames[0], count, clip.sizes()[0])
        frames = [candidates(editor, one, [self.seed], self.keep_unchanged)[0] for one in requests]
        for path, frame in zip(self.save_frame or [], frames, strict=False):
            write_picture(path, frame)
            print(path)
        return [(frame, "crop") for frame in frames]

    def make_editor(self, device: torch.device, dtype: torch.dtype | None) -> FrameEditor | None:
        """The editor that is asked for, ready but not loaded; None if none is."""
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
        """What is asked of the editor for each of `count` edits; masks are cut as the frame was.

        frame: uint8 (h, w, 3). clip: (width, height) that the frame had before it was cut.
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
    """Which options an editor reads: of "instruction", "reference", "seed" and its own setup."""
    if editor is None:
        return frozenset()
    names = getattr(editor, "uses", frozenset({"instruction", "reference", "seed"}))
    return names.union(name for name in SETUP if hasattr(editor, name))


def frame_files(output: str, count: int) -> list[str]:
    """FRAME.png, and of several FRAME-1.png, ..., FRAME-sheet.png: what is written."""
    stem, suffix = os.path.splitext(output)
    names = [*range(1, count + 1), "sheet"] if count > 1 else []
    return [output, *(f"{stem}-{name}{suffix}" for name in names)]


def write_candidates(
    output: str, frame: np.ndarray, found: Sequence[np.ndarray], seed: int
) -> list[str]:
    """Writes each candidate, and all of them in a contact sheet; returns the names of the files."""
    files = frame_files(output, len(found))
    labels = ["source", *(f"{i + 1}: seed {seed + i}" for i in range(len(found)))]
    shown = [found[0]]
    if len(found) > 1:
        shown += [*found, contact_sheet([frame, *found], labels)]
    for file, picture in zip(files, shown, strict=True):
        write_picture(file, picture)
    return files


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (h, w, 3), as PNG."""
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
