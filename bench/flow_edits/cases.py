"""Validation scenes that a model edits in many ways, and the scores of each way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

import anyv2v
from anyv2v.editor import Editor
from anyv2v.injection.fractions import Injection
from anyv2v.media.psnr import psnr
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Source
from anyv2v.weights.demo.scenes import KINDS, draw_edit
from anyv2v.weights.demo.scores import Truth, scores
from bench.edit_quality.rows import with_defaults
from bench.flow_edits.candidates import Candidate, everywhere

SCORES = ("psnr", "trajectory", "colour")
"""The scores of `anyv2v.weights.demo.scores` that are kept."""

Scores = Mapping[str, float | None]
"""Name of a score -> its value, or None if it does not apply to the scene."""


class Case:
    """Validation scene `index`, edited in the way of its turn among `KINDS`."""

    def __init__(self, editor: Editor, index: int, steps: int):
        self.editor, self.steps = editor, steps
        self.kind = KINDS[index % len(KINDS)]
        self.edit = draw_edit(self.kind, "validation", index)
        self._sources: dict[frozenset, Source] = {}

    @cached_property
    def truth(self) -> Truth:
        """The rendered clips before and after the edit."""
        return Truth.of(self.edit, self.editor.defaults.size, self.editor.defaults.frames)

    @cached_property
    def layers(self) -> int:
        """The number of blocks of the network."""
        return len({site.split(".")[1] for site in self.editor.sites})

    def inverted(self, editor: Editor | None = None, **arguments) -> Source:
        """Inverts the clip, by default with the model's own settings."""
        video = anyv2v.Video(self.truth.source, self.editor.defaults.fps)
        steps = arguments.pop("steps", self.steps)
        caption = self.edit.source.caption
        return (editor or self.editor).invert(video, steps=steps, prompt=caption, **arguments)

    def source(self, options: Mapping[str, object]) -> Source:
        """Returns the inverted clip with all features that any candidate injects, recorded."""
        key = frozenset(options.items())
        if key not in self._sources:
            video = anyv2v.Video(self.truth.source, self.editor.defaults.fps)
            recording = self.editor.recording(
                video, everywhere(self.layers), steps=self.steps, options=options
            )
            # enough evaluations to solve every step, also of a run of few steps
            editor = with_defaults(self.editor, evaluations=3.0)
            self._sources[key] = self.inverted(editor, recording=recording, options=options)
        return self._sources[key]

    def edited(self, candidate: Candidate) -> np.ndarray:
        """Returns the frames of the edit under the injection of a candidate."""
        options = candidate.options
        return self.sample(self.source(options), candidate.injection, options=options)

    def sample(self, source: Source, injection: Injection | None = None, **options) -> np.ndarray:
        """Returns the frames of an edit; options: those of `Editor.edit`."""
        return self.edit_of(source, injection=injection, **options).frames

    def edit_of(self, source: Source, **options) -> Edit:
        """Edits the scene; options: those of `Editor.edit`."""
        first, caption = self.truth.frames[0], self.edit.truth.caption
        return self.editor.edit(source, first, caption, steps=self.steps, **options)

    def reconstructions(self, source: Source) -> dict[str, float]:
        """Returns the PSNR in dB of the clip sampled again, with and without offsets."""
        ways = {"reconstruction": source, "without offsets": replace(source, offsets={})}
        found = {}
        for name, way in ways.items():
            again = self.editor.reconstruct(way, source.settings.prompt, steps=self.steps)
            found[name] = self.psnr(again.frames, of_source=True)
        return found

    def psnr(self, clip: np.ndarray, of_source: bool = False) -> float:
        """Returns the PSNR in dB to the true edit, or to the source; frame 0 does not count."""
        return psnr(clip[1:], (self.truth.source if of_source else self.truth.frames)[1:])

    def scores(self, clip: np.ndarray) -> Scores:
        """Returns the scores of an edited clip."""
        found = scores(clip, self.truth)
        return {name: None if np.isnan(found[name]) else found[name] for name in SCORES}
