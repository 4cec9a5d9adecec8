"""`anyv2v edit` and `anyv2v edit-frame`."""

from __future__ import annotations

import argparse

import numpy as np

from anyv2v import checks
from anyv2v.cli import notices, settings
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, size_of
from anyv2v.cli.console import tell
from anyv2v.cli.first_frame import FirstFrame, frame_files, uses, write_candidates
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import Outputs, report
from anyv2v.cli.sidecar import Provenance, with_sidecar
from anyv2v.cli.source import notice, obtain, progress_of, without_effect
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor
from anyv2v.frame_editors.run import candidates
from anyv2v.media.frames import Video
from anyv2v.media.image import fit_frame
from anyv2v.media.video import SUFFIXES
from anyv2v.pipeline.request import Edit, EditRequest


class SomeFailed(Exception):
    """Raised at the end if a command could not make some of its outputs.

    failures: path of an output -> the exception that prevented it.
    """

    def __init__(self, failures: dict[str, Exception]):
        self.failures = failures
        super().__init__(f"{', '.join(failures)} failed")


def run_edit(args: argparse.Namespace) -> None:
    """Runs `anyv2v edit`: edits a video once for each `-o`, and writes the results.

    An edit that fails does not stop the others. Raises `SomeFailed` at the end if any failed.
    """
    first, outputs = typed(FirstFrame, args), typed(Outputs, args)
    model = typed(Model, args)
    frame_editor = first.make_editor(model.torch_device, model.torch_dtype)
    _check_edit(args, frame_editor is not None)
    requests, video = _requests(args, first, frame_editor)
    provenance = Provenance.begin(args)
    editor, source = obtain(args, video=video, uses=uses(frame_editor))
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
                made = None if args.frame else np.asarray(requests[i].frame)
                facts = provenance.of(editor, source, edit.latents, i, made)
                outputs.write(output, edit, facts)
                done[output] = edit
            except Exception as error:
                failures[output] = error
    # all that can be written is, before anything is said of it
    for output, edit in done.items():
        report(output, edit.frames, edit.fps)
    notice(args)
    if failures:
        raise SomeFailed(failures)


def run_edit_frame(args: argparse.Namespace) -> None:
    """Runs `anyv2v edit-frame`: edits the first frame of VIDEO once for each candidate."""
    first, outputs, model = typed(FirstFrame, args), typed(Outputs, args), typed(Model, args)
    files = frame_files(args.output, args.candidates)
    for file in files:
        outputs.check_one(file, (".png",))
    provenance = Provenance.begin(args)
    editor = first.make_editor(model.torch_device, model.torch_dtype)
    if editor is None:
        raise InputError(f"edit-frame needs an --editor: one of {', '.join(EDITORS)}")
    clip = typed(Clip, args)
    whole = clip.first_frame()
    size = clip.target(size_of(whole), size_of(whole), 1)
    frame = whole if size == size_of(whole) else fit_frame(whole, size, clip.fit or "crop")
    (request,) = first.requests(editor, frame, 1, size_of(whole))
    seeds = [args.seed + i for i in range(args.candidates)]
    edited = candidates(editor, request, seeds, args.keep_unchanged)
    tell(without_effect(args, uses(editor)))
    tell(notices.of_the_size(args, size_of(whole), size))
    with with_sidecar(args.output, provenance.of()):
        write_candidates(args.output, frame, edited, args.seed)
    for file in files:
        print(file)


def _requests(
    args: argparse.Namespace, first: FirstFrame, frame_editor: FrameEditor | None
) -> tuple[list[EditRequest], Video | None]:
    """What is asked for each `-o`, and VIDEO if it had to be read for that."""
    clip = typed(Clip, args)
    if frame_editor is None:
        video, frames = None, first.read(clip)
    else:
        video = clip.read()
        frames = first.make(frame_editor, video, len(args.output), clip)
    return [_request(args, *each) for each in zip(frames, args.prompt, strict=True)], video


def _request(args: argparse.Namespace, framed: tuple[np.ndarray, str], prompt: str) -> EditRequest:
    frame, fit = framed
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
    typed(Outputs, args).check(SUFFIXES)
    checks.whole("start", args.start, 0, args.steps - 1)
