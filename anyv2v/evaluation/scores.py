"""The scores of an edited clip that take none of the networks that edit: one row for each metric.

Frame 0 is an input of an edit. So metrics that compare frames begin with frame 1; those of changes
from one frame to the next include the first change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anyv2v.errors import InputError
from anyv2v.evaluation.case import Case
from anyv2v.media.psnr import psnr
from anyv2v.metrics import flow, pixels
from anyv2v.metrics.lpips import NET, Distance, lpips

HIGHER, LOWER = "higher", "lower"
"""What is better, of a metric of which that can be said."""
GAUSSIAN = f"Gaussian {pixels.WINDOW}x{pixels.WINDOW} sigma {pixels.SIGMA:g}"
"""The variant of SSIM."""
LEAST = 0.05
"""Least share of the pixels that a true edit must leave alone for `psnr_unchanged`."""


@dataclass(frozen=True)
class Score:
    """One metric of one clip. A value that is not finite becomes None, with a reason."""

    name: str
    """The metric, with the variant that decides the number in brackets: "psnr_background[...]"."""
    value: float | None
    """The number; None if the metric does not apply."""
    unit: str = ""
    """The unit of the number; "" if it has none."""
    better: str = ""
    """`HIGHER`, `LOWER`, or "" where neither is better in itself."""
    reason: str = ""
    """Why there is no number; "" if there is one."""

    def __post_init__(self):
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "reason", f"the result is {self.value}")
            object.__setattr__(self, "value", None)


@dataclass(frozen=True)
class Metric:
    """A metric and how it is computed."""

    name: str
    """The name of its scores, in which {mask} stands for the name of the case's mask."""
    compute: Callable[[Case], float | None]
    """Computes the value; InputError, or None where a region has no pixels, if it cannot."""
    unit: str = ""
    """The unit of the value."""
    better: str = ""
    """What is better, see `Score.better`."""

    def of(self, case: Case) -> Score:
        """Returns the score of a case: the value, or why there is none."""
        name, reason = self.name.format(mask=case.mask_name), "no pixels are left to compare"
        try:
            value = self.compute(case)
        except InputError as error:
            value, reason = None, str(error)
        return Score(name, value, self.unit, self.better, "" if value is not None else reason)


def scores(case: Case, distance: Distance | None = None) -> list[Score]:
    """Computes all metrics of frames: of the background, of motion, and against the truth.

    distance: what `lpips.load` returned, to compute LPIPS on the CPU as well; None: without it.
    """
    metrics = METRICS if distance is None else (*METRICS, *perceptual(distance))
    return [metric.of(case) for metric in metrics]


def means(rows: Sequence[Sequence[Score]]) -> dict[str, tuple[float, int]]:
    """Returns metric -> its mean over several clips, and over how many: those that have a value.

    rows: the scores of each clip. Metrics are in the order in which they occur first.
    """
    values: dict[str, list[float]] = {}
    for score in (score for each in rows for score in each):
        if score.value is not None:
            values.setdefault(score.name, []).append(score.value)
    return {name: (sum(each) / len(each), len(each)) for name, each in values.items()}


def _later(case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames 1 on of the edited clip, and of the clip `name`."""
    return case.edited[1:], case.need(name)[1:]


def _of_background(metric: Callable[..., float | None]) -> Callable[[Case], float | None]:
    return lambda case: metric(*_later(case, "source"), case.background[1:])


def _unchanged(case: Case) -> float | None:
    region = pixels.unchanged(case.need("source"), case.need("truth"))[1:]
    if region.mean() < LEAST:
        raise InputError(f"the truth leaves less than {LEAST:.0%} of the pixels alone")
    return pixels.psnr_where(*_later(case, "truth"), region)


def _motion(region: Callable[[Case], np.ndarray | None]) -> Callable[[Case], float | None]:
    def compute(case: Case) -> float | None:
        where = region(case)
        where = None if where is None else where[:-1]
        return flow.flow_difference(case.source_flows, case.edited_flows, where)

    return compute


def _warping(case: Case) -> float | None:
    backward = flow.flows(case.need("source"), backward=True)
    return flow.warping_error(case.edited, case.source_flows, backward)


METRICS = (
    Metric("background_share[{mask}, frames 1 on]", lambda c: float(c.background[1:].mean())),
    Metric("psnr_background[{mask}, frames 1 on]", _of_background(pixels.psnr_where), "dB", HIGHER),
    Metric(
        f"ssim_background[{{mask}}, frames 1 on, {GAUSSIAN}, whole windows]",
        _of_background(pixels.ssim_where),
        better=HIGHER,
    ),
    Metric(f"flow_difference[{flow.NAME}, all]", _motion(lambda c: None), "px", LOWER),
    Metric(
        f"flow_difference[{flow.NAME}, background of {{mask}}]",
        _motion(lambda c: c.background),
        "px",
        LOWER,
    ),
    Metric(
        f"flow_difference[{flow.NAME}, edited region of {{mask}}]",
        _motion(lambda c: c.masks != 0),
        "px",
        LOWER,
    ),
    Metric(f"warping_error[{flow.NAME} of the source, RMS]", _warping, "levels", LOWER),
    Metric(
        "flicker_source[RMS of differences of changes]",
        lambda c: pixels.flicker(c.edited, c.need("source")),
        "levels",
        LOWER,
    ),
    Metric("psnr_truth[frames 1 on]", lambda c: psnr(*_later(c, "truth")), "dB", HIGHER),
    Metric(
        f"ssim_truth[frames 1 on, {GAUSSIAN}]",
        lambda c: pixels.ssim(*_later(c, "truth")),
        better=HIGHER,
    ),
    Metric("psnr_unchanged[by the truth, frames 1 on]", _unchanged, "dB", HIGHER),
    Metric(
        "flicker_truth[RMS of differences of changes]",
        lambda c: pixels.flicker(c.edited, c.need("truth")),
        "levels",
        LOWER,
    ),
)
"""The metrics of frames, in the order of the table."""


def perceptual(distance: Distance) -> tuple[Metric, ...]:
    """Returns the metrics that LPIPS computes. distance: what `lpips.load` returned."""
    return (
        Metric(
            f"lpips_background[{NET}, {{mask}}, frames 1 on, the rest black]",
            lambda c: lpips(*_later(c, "source"), distance, c.background[1:]),
            better=LOWER,
        ),
        Metric(
            f"lpips_truth[{NET}, frames 1 on]",
            lambda c: lpips(*_later(c, "truth"), distance),
            better=LOWER,
        ),
    )
