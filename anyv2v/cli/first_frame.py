"""Stage one on the command line: its options, and what comes of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor, FrameRequest
from anyv2v.frame_editors.registry import SETUP, describe, make
from anyv2v.frame_editors.run import candidates, request
from anyv2v.frame_editors.sheet import contact_sheet
from anyv2v.media.mask import fit_mask, read_mask
from anyv2v.media.proportions import Size, check_fit
from anyv2v.runtime.atomic_files import atomic_path


class _List(argparse.Action):
    def __call__(self, parser, *_):
        print(describe())
        parser.exit()


def options(sub: argparse.ArgumentParser) -> None:
    """What an editor is told; the editor may be left out only where --frame may be given."""
    group = sub.add_argument_group("editor of the first frame")
    add = group.add_argument
    add("--editor", choices=EDITORS, help="who edits; anyv2v edit-frame --list says more")
    add("--instruction", action="append", metavar="TEXT", help="what to do with the frame")
    add("--reference", action="append", metavar="IMAGE", help="a picture of what is wanted")
    add("--mask", action="append", metavar="IMAGE", help="white where the frame may change")
    add("--keep-unchanged", action="store_true", help="put back what is hardly changed")
    add("--editor-weights", metavar="DIR", help="what the editor loads")
    add("--editor-option", action="append", metavar="NAME=VALUE", help="any other of its options")
    add(
        "--editor-command",
        metavar="'TOOL {input} {output} ...'",
        help="another tool, run without a shell; also {instruction}, {reference}, {mask}, {seed}",
    )
    add("--editor-timeout", metavar="SECONDS", help="of that tool; else 600")
    add("--list", action=_List, nargs=0, help="all editors with their options, and stop")


def pictures(args: argparse.Namespace) -> list[str]:
    """The files that are read, none of which may be overwritten."""
    return [*(args.reference or []), *(args.mask or [])]


def editor_of(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype | None
) -> FrameEditor | None:
    """The editor that is asked for, ready but not loaded; None if none is."""
    given = {"weights": args.editor_weights, "timeout": args.editor_timeout}
    given |= {"command": args.editor_command}
    given = {name: value for name, value in given.items() if value is not None}
    name = args.editor or ("command" if args.editor_command else None)
    if name is None:
        others = ("instruction", "reference", "mask", "keep_unchanged", "editor_option")
        told = [f"editor_{n}" for n in given] + [n for n in others if getattr(args, n)]
        if told:
            raise InputError(
                f"--{told[0].replace('_', '-')} needs an --editor: one of {', '.join(EDITORS)}"
            )
        return None
    for text in args.editor_option or []:
        option, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--editor-option {text!r} is not NAME=VALUE, such as seed=3")
        given[option.replace("-", "_")] = value
    return make(name, given, device=device, dtype=dtype)


def uses(editor: FrameEditor | None) -> frozenset[str]:
    """Of "instruction", "reference", "seed" and what the tool fills, what it makes something of."""
    if editor is None:
        return frozenset()
    told = getattr(editor, "uses", frozenset({"instruction", "reference", "seed"}))
    return told.union(name for name in SETUP if hasattr(editor, name))


def requests_of(
    args: argparse.Namespace, editor: FrameEditor, frame: np.ndarray, count: int, clip: Size
) -> list[FrameRequest]:
    """What is asked of the editor, for each of `count` edits; masks are cut as the frame was.

    clip: (width, height) that the frame had before.
    """
    size = (frame.shape[1], frame.shape[0])
    told = [
        _each(count, name, getattr(args, name)) for name in ("instruction", "reference", "mask")
    ]
    return [
        request(
            editor,
            frame,
            instruction or "",
            reference,
            None if mask is None else _mask(args, mask, size, clip),
        )
        for instruction, reference, mask in zip(*told, strict=True)
    ]


def _mask(args: argparse.Namespace, path: str, size: Size, clip: Size) -> np.ndarray:
    """A mask as the frame came to its size, or as it is if it has the proportions already."""
    mask = read_mask(path)
    given = mask.shape[1], mask.shape[0]
    return fit_mask(mask, size, args.fit or check_fit(f"--mask {path}", given, clip, size))


def edited(
    args: argparse.Namespace, editor: FrameEditor, frame: np.ndarray, count: int, clip: Size
) -> list[np.ndarray]:
    """The edited frame of each of `count` edits; clip: see `requests_of`."""
    wanted = requests_of(args, editor, frame, count, clip)
    return [candidates(editor, one, [args.seed], args.keep_unchanged)[0] for one in wanted]


def frame_files(output: str, count: int) -> list[str]:
    """FRAME.png, and of several FRAME-1.png, ..., FRAME-sheet.png: what is written."""
    stem, suffix = os.path.splitext(output)
    names = [*range(1, count + 1), "sheet"] if count > 1 else []
    return [output, *(f"{stem}-{name}{suffix}" for name in names)]


def write_candidates(
    output: str, frame: np.ndarray, found: Sequence[np.ndarray], seed: int
) -> list[str]:
    """Writes candidates beside each other, and each alone; gives the names."""
    files = frame_files(output, len(found))
    labels = ["source", *(f"{i + 1}: seed {seed + i}" for i in range(len(found)))]
    shown = [found[0]]
    if len(found) > 1:
        shown += [*found, contact_sheet([frame, *found], labels)]
    for file, picture in zip(files, shown, strict=True):
        write_picture(file, picture)
    return files


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(picture).save(temporary)


def _each(count: int, name: str, given: list[str] | None) -> list[str | None]:
    """One for each edit: none, one for all, or as many as there are."""
    given = given or [None]
    if len(given) not in (1, count):
        raise InputError(
            f"--{name} is given {len(given)} times for {count} edits; give 1 or {count}"
        )
    return given * (count // len(given))
