"""The studies: name -> what is measured in one scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.protection.protect import protect
from bench.edit_quality.rows import with_defaults
from bench.flow_edits.candidates import NOTHING, Candidate, grid
from bench.flow_edits.cases import Case, Scores

Found = Mapping[str, Scores]
"""Name of a row -> its scores."""
Clips = dict[str, np.ndarray]
"""Name of a row -> the edited clip."""

LEVELS = (0.0, 0.05, 0.17, 0.2, 0.25, 0.35, 0.5, 0.7)
"""The sigmas from which on steps are solved; once more, 0 with twice as many evaluations."""


def levels(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
    """Measures inversions against the level from which on they solve; `names` are not used.

    drawn: the number of steps that are not solved. norm: of the noise, 1 for noise that is drawn.
    residual: the largest of a solved step, relative. evaluations: of the network. autoencoder,
    reconstruction, without offsets: dB of the clip encoded and decoded, and sampled again, with and
    without the offsets that the inversion kept. The other scores are those of the edit by the
    weights' own injection; "inverted" is the PSNR in dB of that with nothing injected.
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
            "drawn": len(source.offsets),
            "inverted": case.psnr(case.sample(source, NO_INJECTION)),
            "autoencoder": case.psnr(passed, of_source=True),
            **case.reconstructions(source),
        }
    return found, clips


def sites(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
    """Scores the edits of all candidates of `grid`, or of those that are named."""
    candidates = [Candidate.read(name) for name in names] or [*grid(case.layers)]
    clips = {str(c): case.edited(c) for c in [NOTHING, *candidates]}
    return {name: case.scores(clip) for name, clip in clips.items()}, clips


def guides(case: Case, names: Iterable[str]) -> tuple[Found, Clips]:
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


@dataclass(frozen=True)
class Study:
    """What is measured, and on which scenes."""

    measure: Callable[[Case, Iterable[str]], tuple[Found, Clips]]
    """Returns the scores and clips of the rows of a scene, of those that are named or of all."""
    base: str
    """The row with which all others are compared, scene by scene."""
    first: int
    """The first validation scene; training looks at others."""
    steps: int
    """The number of steps of inversion and sampling."""


STUDIES = {
    "levels": Study(levels, "0.17", first=100, steps=50),
    "sites": Study(sites, "none", first=100, steps=25),
    # rows of "sites" that were chosen, on other scenes
    "settings": Study(sites, "none", first=400, steps=50),
    "guides": Study(guides, "edit", first=400, steps=50),
}
"""Name -> study."""
