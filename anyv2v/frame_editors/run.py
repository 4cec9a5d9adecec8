"""Stage one of an edit, from a frame and an instruction to edited frames: `anyv2v.edit_frame`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameEditor, FrameRequest
from anyv2v.frame_editors.mask import as_mask, blend, detect_changes
from anyv2v.frame_editors.registry import make
from anyv2v.media.image import Frame, read_argument


def edit_frame(
    frame: Frame,
    editor: str | FrameEditor,
    instruction: str = "",
    reference: Frame | None = None,
    mask: Frame | None = None,
    keep_unchanged: bool = False,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Edits a frame; returns uint8 RGB (h, w, 3), which `Editor.edit` takes as `frame`.

    editor: a name out of `anyv2v.frame_editors.EDITORS`, with its options as further arguments
    (`weights="..."`), or an editor, see `FrameEditor`. instruction: what to do, in the editor's
    terms. frame, reference, mask: paths, uint8 arrays (h, w, 3) or PIL images. The reference is a
    picture of the style, subject or colors to take on. The mask is white where the frame may change
    (`media.mask.read_mask` says which other masks are read); outside it the pixels stay exactly as
    they were. keep_unchanged: also restores what the editor hardly changed. seed: the seed of the
    editor's random numbers.

    Raises InputError for an unknown editor or option, for an input that cannot be read, and for an
    input that the editor needs but does not get.
    """
    if isinstance(editor, str):
        editor = make(editor, options)
    elif options:
        raise InputError(f"{next(iter(options))}: options go with the name of an editor")
    keep_unchanged, seed = checks.flag("keep_unchanged", keep_unchanged), checks.seed(seed)
    inputs = request(editor, frame, instruction, reference, mask)
    return candidates(editor, inputs, [seed], keep_unchanged)[0]


def request(
    editor: FrameEditor,
    frame: Frame,
    instruction: str = "",
    reference: Frame | None = None,
    mask: Frame | None = None,
) -> FrameRequest:
    """Reads and checks the inputs of an editor; the arguments are those of `edit_frame`.

    Raises InputError if `editor` is not an editor, if it needs an input that is not given, or if an
    input cannot be read.
    """
    if not callable(editor) or not hasattr(editor, "needs") or isinstance(editor, type):
        raise InputError(
            f"editor: {checks.shown(editor)} is no editor; give one of {', '.join(EDITORS)}, "
            "or one that was made"
        )
    instruction = checks.text("instruction", instruction)
    inputs = {"instruction": instruction.strip() or None, "reference": reference, "mask": mask}
    if missing := [what for what in sorted(editor.needs) if inputs[what] is None]:
        raise InputError(f"{type(editor).__name__} needs {' and '.join(missing)}")
    frame = read_argument("frame", frame)
    return FrameRequest(
        frame,
        instruction,
        None if reference is None else read_argument("reference", reference),
        None if mask is None else as_mask(mask, frame.shape[:2]),
    )


def candidates(
    editor: FrameEditor, request: FrameRequest, seeds: Sequence[int], keep_unchanged: bool = False
) -> list[np.ndarray]:
    """Runs an editor; returns an edited frame for each seed, uint8 RGB (h, w, 3).

    Outside the mask of the request the frame is restored. keep_unchanged: restores as well what the
    editor hardly changed, see `detect_changes`. Raises TypeError if the editor does not return one
    uint8 picture of the frame's size for each seed.
    """
    try:
        edited_frames = editor(request, seeds)
    finally:
        # for stage two
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    frame = request.frame
    for edited in edited_frames:
        if (
            edited.dtype != np.uint8
            or edited.shape != frame.shape
            or len(edited_frames) != len(seeds)
        ):
            raise TypeError(f"{type(editor).__name__} gave no picture like the frame for each seed")
    if keep_unchanged:
        edited_frames = [blend(frame, x, detect_changes(frame, x)) for x in edited_frames]
    if request.mask is not None:
        edited_frames = [blend(frame, x, request.mask) for x in edited_frames]
    return edited_frames
