"""Stage one, from a frame and a wish to candidates: `anyv2v.edit_frame`."""

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
from anyv2v.frame_editors.mask import as_mask, blend, changed
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
    """The edited frame, uint8 (h, w, 3): what `Editor.edit` takes as `frame`.

    editor: a name out of `anyv2v.frame_editors.EDITORS`, with its options (`weights="..."`), or one
    that was made. frame, reference and mask: paths, uint8 arrays (h, w, 3) or PIL images; the mask
    is white where the frame may change (or one of the others that `media.mask.read_mask` reads),
    and outside it the frame stays as it was, to the bit. keep_unchanged makes such a mask of what
    the editor hardly changed.
    """
    if isinstance(editor, str):
        editor = make(editor, options)
    elif options:
        raise InputError(f"{next(iter(options))}: options go with the name of an editor")
    keep_unchanged, seed = checks.flag("keep_unchanged", keep_unchanged), checks.seed(seed)
    wanted = request(editor, frame, instruction, reference, mask)
    return candidates(editor, wanted, [seed], keep_unchanged)[0]


def request(
    editor: FrameEditor,
    frame: Frame,
    instruction: str = "",
    reference: Frame | None = None,
    mask: Frame | None = None,
) -> FrameRequest:
    """What is asked of an editor, read and checked; InputError if it needs more than is given."""
    if not callable(editor) or not hasattr(editor, "needs") or isinstance(editor, type):
        raise InputError(
            f"editor: {checks.shown(editor)} is no editor; give one of {', '.join(EDITORS)}, "
            "or one that was made"
        )
    instruction = checks.text("instruction", instruction)
    given = {"instruction": instruction.strip() or None, "reference": reference, "mask": mask}
    if missing := [what for what in sorted(editor.needs) if given[what] is None]:
        raise InputError(f"{type(editor).__name__} needs {' and '.join(missing)}")
    frame = read_argument("frame", frame)
    return FrameRequest(
        frame,
        instruction,
        None if reference is None else read_argument("reference", reference),
        None if mask is None else as_mask(mask, frame.shape[:2]),
    )


def candidates(
    editor: FrameEditor, wanted: FrameRequest, seeds: Sequence[int], keep_unchanged: bool = False
) -> list[np.ndarray]:
    """An edited frame for each seed, uint8 (h, w, 3), with what lies outside the mask put back."""
    try:
        found = editor(wanted, seeds)
    finally:
        # stage two wants the memory
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    for picture in found:
        if (
            picture.dtype != np.uint8
            or picture.shape != wanted.frame.shape
            or len(found) != len(seeds)
        ):
            raise TypeError(f"{type(editor).__name__} gave no picture like the frame for each seed")
    if keep_unchanged:
        found = [blend(wanted.frame, p, changed(wanted.frame, p)) for p in found]
    if wanted.mask is not None:
        found = [blend(wanted.frame, picture, wanted.mask) for picture in found]
    return found
