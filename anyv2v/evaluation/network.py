"""Scores that take the network that edits: what its inversion and its latents make of a clip.

All of them are at the size at which the network works. A clip that the weights do not take (its
size, or its number of frames) is refused with InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyv2v.backbones.base import Options
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.evaluation.case import Case
from anyv2v.evaluation.scores import HIGHER, LOWER, Metric, Score
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.media.frames import Video
from anyv2v.media.psnr import psnr
from anyv2v.metrics.features import distances, matched_cosine
from anyv2v.pipeline.denoise import prepend_pinned
from anyv2v.pipeline.guide import clip_features
from anyv2v.pipeline.inverting import STEPS

CURVES = ("latents to frame 0", "latents to the frame before")
"""What the two curves of a clip's latents show: distances between the latents of frames."""
Track = Callable[[str, int], Any]
"""Begins a stage, given its title and number of steps; returns what is called after each step, or
None."""


@dataclass(frozen=True)
class Run:
    """How clips are inverted and sampled again. None stands for the weights' own value."""

    method: str = "fixed-point"
    """The method of the inversion, one of `METHODS`."""
    inversion_steps: int | None = None
    """The number of its steps."""
    steps: int | None = None
    """The number of steps of sampling."""
    prompt: str = ""
    """The text that describes the clip."""
    tolerance: float | None = None
    """The relative residual to which a step is solved, see `Editor.invert`."""
    options: Options | None = None
    """Options of the backbone."""
    frames: int | None = None
    """The most frames that are inverted at once: longer clips are cut; None: all."""

    def name(self, editor: Editor, frames: int) -> str:
        """Returns how a clip of so many frames is inverted, for the name of a metric."""
        steps = self.inversion_steps or STEPS.get(self.method) or editor.defaults.steps
        sampled = self.steps or editor.defaults.steps
        return f"{self.method} {steps}, {sampled} steps back, {frames} frames"


def round_trip(
    editor: Editor, video: Video, run: Run, of: str = "source", track: Track | None = None
) -> list[Score]:
    """Inverts a clip and samples it again, with nothing injected: PSNR and error of the latents.

    video: of the size that the network works at; of a longer clip than `run.frames` the first
    frames are taken. of: what the clip is, for the names of the scores. The error of the latents is
    the norm of their difference from the clip's own, relative to the norm of these.
    """
    track = track or (lambda title, steps: None)
    if run.frames is not None and len(video) > run.frames:
        video = Video(video.frames[: run.frames], video.fps)
    steps = run.steps or editor.defaults.steps
    name = run.name(editor, len(video))
    plan = editor.step_plan(steps, injection=NO_INJECTION, options=run.options)
    count = run.inversion_steps or STEPS.get(run.method) or editor.defaults.steps
    source = editor.invert(
        video,
        run.method,
        run.inversion_steps,
        run.prompt,
        tolerance=run.tolerance,
        plan=plan,
        options=run.options,
        on_step=track(f"invert the {of}", count),
    )
    again = editor.reconstruct(
        source,
        run.prompt,
        steps=steps,
        options=run.options,
        on_step=track(f"reconstruct the {of}", steps),
    )
    clean = source.trajectory.clean.to(again.latents.device)
    error = ((again.latents - clean).norm() / clean.norm()).item()
    return [
        Score(f"psnr_round_trip_{of}[{name}]", psnr(again.frames, video.frames), "dB", HIGHER),
        Score(f"latent_error_round_trip_{of}[{name}]", error, "", LOWER),
    ]


def frame_round_trip(
    editor: Editor, frame: np.ndarray, frames: int, run: Run, track: Track | None = None
) -> list[Score]:
    """Does `round_trip` with a clip of so many frames in which the edited first frame stands still.

    frame: uint8 RGB (h, w, 3). What an edited frame that the network cannot hold loses here, an
    edit loses as well.
    """
    frames = frames if run.frames is None else min(frames, run.frames)
    still = Video(np.repeat(frame[None], frames, axis=0), editor.defaults.fps)
    return round_trip(editor, still, run, "frame", track)


def feature_match(editor: Editor, clip: np.ndarray, first: np.ndarray, run: Run) -> float:
    """Returns how well a clip's places are found again in its first frame, by the network's eye.

    clip: uint8 RGB (f, h, w, 3), cut to `run.frames`. first: the frame that the clip began with
    before the network had it, (h, w, 3). Features of all frames are recorded in one prediction, in
    which `first` takes the place of frame 0; the result is `matched_cosine` of frames 1 on (latent
    frames, where the network has fewer) to frame 0.
    """
    clip = clip[: run.frames]
    clean = prepend_pinned(editor.encode_frames(first[None]), editor.encode_frames(clip)[:, :, 1:])
    if clean.shape[2] < 2:
        raise InputError(f"{len(clip)} frames are one frame of latents; at least 2 are needed")
    size = clip.shape[2], clip.shape[1]
    conditions = editor.condition(run.prompt, first, len(clip), size, options=run.options)
    features = clip_features(editor, clean, conditions)
    return matched_cosine(features[1:], features[0])


def latent_path(editor: Editor, clip: np.ndarray) -> dict[str, list[float]]:
    """Returns how the latents of a clip's frames move: a curve for each of `CURVES`.

    clip: uint8 RGB (f, h, w, 3). A curve has one distance for each latent frame, of which the first
    is 0, see `metrics.features.distances`.
    """
    latents = editor.encode_frames(clip)
    return dict(zip(CURVES, (distances(latents), distances(latents, 1)), strict=True))


def checks(
    editor: Editor, case: Case, run: Run, track: Track | None = None
) -> tuple[list[Score], dict[str, dict[str, list[float]]]]:
    """Does three checks of what an edit begins with and what becomes of it.

    The edited first frame there and back, see `frame_round_trip`; the places of the edited first
    frame in the edit, and for comparison those of the source's in the source, see `feature_match`;
    and the path of the latents along the frames, see `latent_path`. Where no edited first frame is
    known, frame 0 of the edit takes its place. Returns the scores, and of the last check one of
    `CURVES` -> "edit" or "source" -> the curve.
    """
    first, count = case.references.get(0, case.edited[0]), len(case.edited)
    rows = tried(
        editor, run, "frame", count, lambda: frame_round_trip(editor, first, count, run, track)
    )
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in CURVES}
    for name, clip in (("edit", case.edited), ("source", case.source)):
        if clip is None:
            continue
        reference = first if name == "edit" else clip[0]
        site = f"{editor.backbone.correspondence_site}, frames 1 on to frame 0"
        matched = Metric(
            f"feature_match_{name}[{site}]",
            lambda _, clip=clip, at=reference: feature_match(editor, clip, at, run),
            better=HIGHER,
        )
        rows.append(matched.of(case))
        for curve, score, values in _path(editor, name, clip):
            rows.append(score)
            curves[curve] |= {name: values} if values else {}
    return rows, {title: lines for title, lines in curves.items() if lines}


def _path(editor: Editor, name: str, clip: np.ndarray) -> Iterator[tuple[str, Score, list[float]]]:
    """For each of `CURVES`: its name, its mean as a score, and its values if there are any."""
    try:
        path, reason = latent_path(editor, clip), "the clip is one frame of latents"
    except InputError as error:
        path, reason = {curve: [] for curve in CURVES}, str(error)
    for curve, values in path.items():
        known = len(values) > 1
        mean = sum(values[1:]) / (len(values) - 1) if known else None
        title = f"distance_{name}[{curve}, RMS, mean of frames 1 on]"
        yield curve, Score(title, mean, reason="" if known else reason), values


def tried(
    editor: Editor, run: Run, of: str, frames: int, trip: Callable[[], list[Score]]
) -> list[Score]:
    """Returns the scores of a round trip; or, if the weights do not take the clip, why not."""
    try:
        return trip()
    except InputError as error:
        name = run.name(editor, frames)
        return [Score(f"psnr_round_trip_{of}[{name}]", None, "dB", HIGHER, str(error))]
