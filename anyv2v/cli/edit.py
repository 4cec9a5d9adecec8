"""`anyv2v edit` and `anyv2v edit-frame`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from anyv2v import checks
from anyv2v.cli import notices
from anyv2v.cli.arguments import typed
from anyv2v.cli.clip import Clip, is_source, size_of, windows_of
from anyv2v.cli.console import tell
from anyv2v.cli.edits import LongEdits, ShortEdits
from anyv2v.cli.finish import Form
from anyv2v.cli.first_frame import FirstFrame, frame_files, uses, write_candidates
from anyv2v.cli.model import Model
from anyv2v.cli.outputs import Outputs, Written, report
from anyv2v.cli.sidecar import Provenance, with_sidecar
from anyv2v.cli.source import notice, progress_of, without_effect
from anyv2v.cli.values import OFF, SOURCE
from anyv2v.cli.work import Work
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.run import candidates
from anyv2v.media.cuts import find_cuts
from anyv2v.media.frames import Frames, Video
from anyv2v.media.image import fit_frame
from anyv2v.media.video import SUFFIXES, read_video
from anyv2v.pipeline.guide import WAYS
from anyv2v.pipeline.request import EditRequest


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
    first, outputs, model = typed(FirstFrame, args), typed(Outputs, args), typed(Model, args)
    frame_editor, clip = first.make_editor(model.torch_device, model.torch_dtype), typed(Clip, args)
    _check_edit(args, frame_editor is not None)
    # before the clip is read whole, which may take long
    pictures = [] if frame_editor else first.read(clip)
    provenance = Provenance.begin(args)
    with Work.begin(args) as work:
        frames = work.frames(clip, args.window)
        begin = frames.frames_at([0])[0]
        if frame_editor:
            pictures = first.make(frame_editor, begin, len(args.output), clip)
        keyframes = first.read_keyframes(clip, size_of(begin))
        asked = _asked(args, pictures, frames)
        form = Form.of(args, frames)
        # refuses impossible numbers before the weights are loaded
        windows = [] if clip.is_source else windows_of(args, len(frames), keyframes)
        work.clear(args.resume)
        tell([notices.cuts(args.video, _found_cuts(frames, keyframes))])
        # a source was inverted at once, however long it is
        if keyframes or len(windows) > 1:
            edits = LongEdits.make(args, work, frames, asked, keyframes, uses(frame_editor))
        else:
            edits = ShortEdits.make(args, frames, asked, uses(frame_editor))
        done, failures = _write(args, edits, form, outputs, provenance)
        # all that can be written is, before anything is said of it
        for output, written in done.items():
            report(output, written)
        notice(args)
        if failures:
            raise SomeFailed(failures)


def help_edit(args: argparse.Namespace) -> None:
    """Runs windows of a long clip for another process that runs `run_edit` with the same options.

    Does nothing if that one has no windows to run, or if an editor makes the first frame.
    """
    work = Work.begin(args)
    if not work.is_prepared or not args.frame:
        return
    first, clip = typed(FirstFrame, args), typed(Clip, args)
    frames = work.frames(clip, args.window)
    asked = _asked(args, first.read(clip), frames)
    keyframes = first.read_keyframes(clip, size_of(frames.frames_at([0])[0]))
    edits = LongEdits.make(args, work, frames, asked, keyframes, frozenset())
    try:
        with progress_of(args) as progress:
            edits.run_windows(progress("windows", edits.run.steps()), wait=False)
    finally:
        if not work.is_prepared:
            # the other process has removed it already
            work.remove()


def _asked(
    args: argparse.Namespace, pictures: Sequence[tuple[np.ndarray, str]], frames: Frames
) -> list[EditRequest]:
    """What is asked for, one for each edit; pictures: the edited first frames."""
    guide = _guide(args, frames)
    return [
        _request(args, *picture, prompt, guide)
        for picture, prompt in zip(pictures, args.prompt, strict=True)
    ]


def _write(
    args: argparse.Namespace,
    edits: ShortEdits | LongEdits,
    form: Form,
    outputs: Outputs,
    provenance: Provenance,
) -> tuple[dict[str, Written], dict[str, Exception]]:
    """Makes and writes all edits; returns output -> what was written, or why there is none."""
    editor, factor = edits.editor, edits.editor.backbone.codec.spatial_compression
    failures: dict[str, Exception] = {}
    done: dict[str, Written] = {}
    for i, (output, edit) in enumerate(zip(args.output, edits.each(args), strict=True)):
        try:
            if isinstance(edit, Exception):
                raise edit
            made = None if args.frame else edit.references[0]
            facts = provenance.of(editor, edit.inverted, edit.latents_sha256, i, made)
            finish = form.finish(edit.references, factor)
            done[output] = outputs.write(output, edit.frames, finish, facts)
        except Exception as error:
            failures[output] = error
    return done, failures


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


def _guide(args: argparse.Namespace, frames: Frames) -> str | Video | None:
    """The guide that --guide asks for; a clip is read whole, at the size of the edit."""
    if args.guide == OFF:
        return None
    if args.guide in WAYS:
        return args.guide
    size = size_of(frames.frames_at([0])[0])
    try:
        return read_video(args.guide, size, len(frames), fit=args.fit or "crop")
    except InputError as error:
        raise InputError(f"--guide {error}") from error


def _found_cuts(frames: Frames, keyframes: Mapping[int, np.ndarray]) -> list[int]:
    """Where the clip is cut and no keyframe tells what comes after it."""
    found = find_cuts(frames.frames_at([i])[0] for i in range(len(frames)))
    scenes = pairwise([*found, len(frames)])
    return [a for a, b in scenes if not any(a <= k < b for k in keyframes)]


def _request(
    args: argparse.Namespace, frame: np.ndarray, fit: str, prompt: str, guide: str | Video | None
) -> EditRequest:
    return EditRequest(
        frame,
        prompt,
        args.negative_prompt,
        args.guidance,
        args.random_ratio,
        args.seed,
        fit,
        guide=guide,
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
    if args.keyframe and count > 1:
        raise InputError(f"--keyframe goes with one edit; there are {count}")
    if is_source(args.video):
        for option, given in (("keyframe", args.keyframe), ("out-size", args.out_size == SOURCE)):
            if given:
                raise InputError(f"--{option} needs the video; {args.video} is inverted already")
    if saved and not (by_editor and len(saved) == count):
        raise InputError("--save-frame goes with an --editor, once for each -o")
    typed(Outputs, args).check(SUFFIXES)
    checks.whole("start", args.start, 0, args.steps - 1)
