"""Scores of the cells of a comparison: against the truth if there is one, else without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from anyv2v.comparison.cells import Cell, Comparison, Layout
from anyv2v.comparison.results import CLIP_HEADS, Result
from anyv2v.evaluation.case import Case
from anyv2v.evaluation.scores import METRICS, Score
from anyv2v.media.image import read_image
from anyv2v.media.mask import read_mask
from anyv2v.media.psnr import psnr
from anyv2v.media.video import read_video

OF_TRUTH = ("psnr_truth", "ssim_truth", "psnr_unchanged", "flicker_truth")
"""Metrics, without their variants, of edits that have a truth."""
WITHOUT = ("psnr_background", "ssim_background", "flow_difference", "warping_error")
"""Metrics of edits that have none."""
FIRST_FRAME = "psnr_first_frame[given to the methods, to the truth]"
"""Metric of the editor of the first frame alone."""

Further = Callable[[np.ndarray, str, np.ndarray], dict[str, float]]
"""(edited clip, prompt, edited first frame) -> further metrics, such as those of a CLIP."""


def judge(
    comparison: Comparison, layout: Layout, done: Callable[[Cell], bool], further: Further | None
) -> Iterator[Result]:
    """Yields the scores of all cells that are done, in the order of `Comparison.cells`.

    What depends on the clip and its first frame alone, such as the mask, is found once.
    """
    known, like = None, None
    for cell in comparison.cells():
        if not done(cell):
            continue
        edited = read_video(layout.output(cell)).frames
        if known != (key := (cell.edit, cell.frame)) or like is None:
            like, known = _case(cell, layout, edited), key
        case = like = like.like(edited)
        yield Result(cell, [*_scores(case), *_further(case, cell, further)])


def _case(cell: Cell, layout: Layout, edited: np.ndarray) -> Case:
    edit = cell.edit
    frame = read_image(layout.frame(edit, cell.frame))
    mask = None if edit.mask is None else read_mask(layout.mask(edit))
    truth = None if edit.truth is None else _frames(layout.truth(edit))
    return Case(edited, _frames(layout.clip(edit.clip)), truth, {0: frame}, mask)


def _frames(folder: Path) -> np.ndarray:
    return read_video(folder).frames


def _scores(case: Case) -> Iterator[Score]:
    wanted = WITHOUT if case.truth is None else OF_TRUTH
    yield from (metric.of(case) for metric in METRICS if metric.name.partition("[")[0] in wanted)
    if case.truth is not None:
        yield Score(FIRST_FRAME, psnr(case.references[0], case.truth[0]), "dB", "higher")


def _further(case: Case, cell: Cell, further: Further | None) -> Iterator[Score]:
    if further is not None:
        found = further(case.edited, cell.edit.prompt, case.references[0])
        for name, value in found.items():
            # the frames of a still clip are alike, which is no merit
            better = "higher" if name.startswith(CLIP_HEADS[0]) else ""
            yield Score(name, value, better=better)
