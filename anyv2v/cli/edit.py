"""`anyv2v edit` and `anyv2v edit-frame`."""

from __future__ import annotations

import argparse
import os

import numpy as np

from anyv2v import checks
from anyv2v.cli import first_frame, notices, outputs, settings
from anyv2v.cli.clip import Clip, size_of
from anyv2v.cli.console import tell
from anyv2v.cli.sidecar import Provenance, beside, sidecar_of
from anyv2v.cli.source import dtype_of, notice, obtain, progress_of, without_effect
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor
from anyv2v.frame_editors.run import candidates
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame, read_image
from anyv2v.media.proportions import check_fit
from anyv2v.media.video import SUFFIXES
from anyv2v.pipeline.request import Edit, EditRequest
from anyv2v.runtime.device import choose_device


class SomeFailed(Exception):
    """Some of a command's outputs were not made; `failures` is output -> why."""

    def __init__(self, failures: dict[str, Exception]):
        self.failures = failures
        super().__init__(f"{', '.join(failures)} failed")


def run_edit(args: argparse.Namespace) -> None:
    """Edits a video, once for each `-o`."""
    frame_editor = _frame_editor(args)
    _check_edit(args, frame_editor is not None)
    requests, video = _requests(args, frame_editor)
    provenance = Provenance.begin(args)
    editor, source = obtain(args, video=video, uses=first_frame.uses(frame_editor))
    failures: dict[str, Exception] = {}
    done: dict[str, Edit] = {}
    with progress_of(args) as progress:
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
                made = None if args.frame else requests[i].frame
                facts = provenance.of(editor, source, edit.latents, i, made)
                outputs.write(output, edit, facts, args.force)
                done[output] = edit
            except Exception as error:
                failures[output] = error
    # all that can be written is, before anything is said of it
    for output, edit in done.items():
        outputs.report(output, edit.frames, edit.fps)
    notice(args)
    if failures:
        raise SomeFailed(failures)


def run_edit_frame(args: argparse.Namespace) -> None:
    """Edits the first frame alone, as often as there are candidates."""
    files = first_frame.frame_files(args.output, args.candidates)
    for file in files:
        outputs.check(args, file, (".png",), args.video, *first_frame.pictures(args))
    provenance = Provenance.begin(args)
    editor = _frame_editor(args)
    if editor is None:
        raise InputError(f"edit-frame needs an --editor: one of {', '.join(EDITORS)}")
    clip = Clip.of(args)
    whole = clip.first_frame()
    size = clip.target(size_of(whole), size_of(whole), 1)
    frame = whole if size == size_of(whole) else fit_frame(whole, size, clip.fit)
    (request,) = first_frame.requests_of(args, editor, frame, 1, size_of(whole))
    seeds = [args.seed + i for i in range(args.candidates)]
    edited = candidates(editor, request, seeds, args.keep_unchanged)
    tell(without_effect(args, first_frame.uses(editor)))
    tell(notices.of_the_size(args, size_of(whole), size))
    with beside(args.output, provenance.of()):
        first_frame.write_candidates(args.output, frame, edited, args.seed)
    for file in files:
        print(file)


def _requests(
    args: argparse.Namespace, frame_editor: FrameEditor | None
) -> tuple[list[EditRequest], Video | None]:
    """What is asked for each `-o`, and VIDEO if it had to be read for that."""
    clip = Clip.of(args)
    video, (own, size) = None, clip.sizes()
    if frame_editor is None:
        frames = [read_image(frame) for frame in args.frame]
        stretched = "stretch" if args.paper else None
        fits = [
            args.fit or stretched or check_fit(path, size_of(frame), own, size)
            for path, frame in zip(args.frame, frames, strict=True)
        ]
    else:
        video = clip.video()
        frames = first_frame.edited(args, frame_editor, video.frames[0], len(args.output), own)
        fits = ["crop"] * len(frames)  # they have the clip's size
        for path, frame in zip(args.save_frame or [], frames, strict=False):
            first_frame.write_picture(path, frame)
            print(path)
    return [_request(args, *each) for each in zip(frames, args.prompt, fits, strict=True)], video


def _request(args: argparse.Namespace, frame: np.ndarray, prompt: str, fit: str) -> EditRequest:
    return EditRequest(
        frame,
        prompt,
        args.negative_prompt,
        args.guidance,
        args.random_ratio,
        args.seed,
        fit,
    )


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
    paths = [*args.output, *saved]
    for i, path in enumerate(paths):
        if os.path.realpath(path) in map(os.path.realpath, paths[:i]):
            raise InputError(f"-o {path}: is given twice")
        suffixes = SUFFIXES if i < count else (".png",)
        outputs.check(args, path, suffixes, args.video, *frames, *first_frame.pictures(args))
        sidecar = sidecar_of(path)
        if os.path.realpath(sidecar) in (os.path.realpath(sidecar_of(x)) for x in paths[:i]):
            raise InputError(f"-o {path}: needs a folder of its own, for its {sidecar.name}")
    checks.whole("start", args.start, 0, args.steps - 1)


def _frame_editor(args: argparse.Namespace) -> FrameEditor | None:
    return first_frame.editor_of(args, choose_device(args.device), dtype_of(args))
