"""The studies: name -> what is measured in one scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.protection.protect import protect
from bench.flow_edits.candidates import NOTHING, Candidate, grid
from bench.flow_edits.cases import Case, Scores, with_defaults

Found = Mapping[str, Scores]
"""Name of a row -> its scores."""
Clips = dict[str, np.ndarray]
"""Name of a row -> the edited clip."""

LEVELS = (0.0, 0.05, 0.1, 0.17, 0.25, 0.35, 0.5, 0.7)
"""The sigmas from which on steps are solved; once more, 0 with twice as many evaluations."""


def levels(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
    """Measures inversions against the level from which on they solve; `names` are not used.

    norm: of the noise, 1 for noise that is drawn. residual: the largest of a solved step, relative.
    evaluations: of the network. reconstruction: dB of the clip sampled again, with the offsets that
    the inversion kept; without offsets: without them. autoencoder: dB of the clip encoded and
    decoded. The other scores are those of the edit by the weights' own injection, and "plain" is
    its PSNR in dB with nothing injected.
    """
    found: dict[str, Scores] = {}
    clips: Clips = {}
    clean = case.editor.encode_frames(case.truth.source)
    passed = case.editor.decode(clean)
    ways: dict[str, dict] = {f"{level:g}": {"solved_from": level} for level in LEVELS}
    ways["0, 3 a step"] = {"solved_from": 0.0, "evaluations": 3.0}
    for name in [*ways, "euler", "euler, 500 steps"]:
        editor = with_defaults(case.editor, **ways.get(name, {}))
        method: dict[str, Any] = {} if name in ways else {"method": "ddim"}
        if "500" in name:
            method["steps"] = 500
        source = case.inverted(editor, **method)
        solved = [r for i, r in source.residuals.items() if i not in source.offsets]
        clips[name] = case.sample(source)
        found[name] = {
            **case.scores(clips[name]),
            "norm": source.noise_norm,
            "residual": max(solved, default=None),
            "evaluations": source.evaluations,
            "plain": case.psnr(case.sample(source, NO_INJECTION)),
            "autoencoder": case.psnr(passed, of_source=True),
            **case.reconstructions(source),
        }
    return found, clips


def sites(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
    """Scores the edits of all candidates of `grid`, or of those that are named."""
    candidates = [Candidate.read(name) for name in names] or [*grid(case.layers)]
    clips = {str(c): case.edited(c) for c in [NOTHING, *candidates]}
    return {name: case.scores(clip) for name, clip in clips.items()}, clips


def help_from_pixels(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
    """Scores guided and protected edits by the weights' own injection; `names` are not used.

    "auto" is the guess that features carry, "patches" that which patches of pixels carry; "from"
    tells the part of the steps that is left out.
    """
    source = case.source({})
    clips: Clips = {}
    # what is left of a guess at the levels of `wan`: 2 % after 0.1, 23 % after 0.6 of the steps
    for guide in (None, "auto", "patches"):
        for start in (0.1, 0.2, 0.4, 0.6) if guide else (0.0,):
            name = guide or "edit"
            name += f" from {start:g}" if start else ""
            edit = case.edit_of(source, guide=guide, start=int(start * case.steps))
            clips[name] = edit.frames
            clips[f"{name}, protected"] = protect(edit, source).frames
    return {name: case.scores(clip) for name, clip in clips.items()}, clips


STUDIES: dict[str, Callable[[Case, Iterable[str]], tuple[Found, Clips]]] = {
    "levels": levels,
    "sites": sites,
    "settings": sites,
    "pixels": help_from_pixels,
}
"""Name -> study. "settings" is "sites" with the candidates that are named, on other scenes."""
BASES = {"levels": "0.17", "sites": "none", "settings": "none", "pixels": "edit"}
"""Name of a study -> the row with which all others are compared, scene by scene."""
FIRST = {"levels": 100, "sites": 100, "settings": 400, "pixels": 400}
"""Name of a study -> its first validation scene; training looks at others."""
