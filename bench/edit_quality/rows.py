"""The rows of the table: every way to get an edited clip from a scene, and what each is for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

import anyv2v
from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.cli.settings import GUIDED, GUIDED_BY_PIXELS
from anyv2v.comparison import baselines
from anyv2v.editor import Editor
from anyv2v.injection.fractions import NO_INJECTION
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Source
from anyv2v.protection.protect import protect
from anyv2v.weights.demo.recipe import ATTENTION
from anyv2v.weights.demo.scenes import SceneEdit
from anyv2v.weights.demo.scores import Truth

ORIGINAL = anyv2v.Injection(conv=0.2, spatial=0.2, temporal=0.5)


@dataclass
class Case:
    """One scene that is edited in several ways; what they share is made once, when asked for."""

    editor: Editor
    edit: SceneEdit
    frames: int

    @cached_property
    def truth(self) -> Truth:
        """The rendered clips before and after the edit."""
        return Truth.of(self.edit, self.editor.defaults.size, self.frames)

    @cached_property
    def source(self) -> Source:
        """The inverted source."""
        video = anyv2v.Video(self.truth.source, self.editor.defaults.fps)
        return self.editor.invert(video, prompt=self.edit.source.caption)

    @cached_property
    def plain(self) -> Edit:
        """The edit with the model's best settings."""
        return self.sample()

    @cached_property
    def guided(self) -> Edit:
        """The same from a guess that the recorded features make."""
        return self.sample(guide="auto", start=self.step(GUIDED["auto"]))

    @cached_property
    def guided_by_patches(self) -> Edit:
        """The same from a guess in pixels."""
        return self.sample(guide="patches", start=self.step(GUIDED_BY_PIXELS))

    def step(self, part: float) -> int:
        """The index of the step after the first `part` of all steps."""
        return int(part * self.editor.defaults.steps)

    def protected(self, edit: Edit) -> np.ndarray:
        """The frames of an edit with the source's pixels where it left them alone."""
        return protect(edit, self.source).frames

    def sample(
        self,
        injection: anyv2v.Injection | None = None,
        frame: np.ndarray | None = None,
        **options,
    ) -> Edit:
        """Edits the scene with the weights' own settings.

        injection: by default theirs, too. frame: by default the true one. options: those of
        `Editor.edit`.
        """
        first = self.truth.frames[0] if frame is None else frame
        caption = self.edit.truth.caption
        return self.editor.edit(self.source, first, caption, injection=injection, **options)


@dataclass(frozen=True)
class Row:
    """One way to get a clip, which is compared with the truth."""

    make: Callable[[Case], np.ndarray]
    reconstructs: bool = False
    """Whether the clip is compared with the source, by its PSNR alone."""
    needs: str = ""
    """The module without which the row is left out."""
    of: str = ""
    """The backbone whose edits alone have the row; "" if all have it."""

    def lacks(self, backbone: str) -> str:
        """Says why the row cannot be made with weights of `backbone`; "" if it can."""
        if self.of not in ("", backbone):
            return f"only weights of {self.of} have these sites"
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is missing: pip install '.[bench]'"
        return ""


def with_defaults(editor: Editor, **defaults) -> Editor:
    """Returns an editor of the same networks, whose weights have other defaults."""
    other = copy(editor)
    other.backbone = replace(editor.backbone, defaults=replace(editor.defaults, **defaults))
    return other


def with_original_sites(editor: Editor, injection: anyv2v.Injection) -> anyv2v.Injection:
    """The same injection at the sites, on the way up, that the original chose in its network."""
    layers = sum(site.startswith("up.1.res.") for site in editor.sites) - 1
    return anyv2v.Injection(sites=paper_sites(ATTENTION, layers)).over(injection)


def _reconstruction(case: Case, offsets: bool = True) -> np.ndarray:
    source = case.source if offsets else replace(case.source, offsets={})
    return case.editor.reconstruct(source, case.edit.source.caption).frames


def _autoencoded(case: Case, clip: np.ndarray) -> np.ndarray:
    return case.editor.decode(case.editor.encode_frames(clip))


def _carried(carry: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    return lambda case: carry(case.truth.source, case.truth.frames[0])


ROWS = {
    "edit": Row(lambda case: case.plain.frames),
    "protected": Row(lambda case: case.protected(case.plain)),
    "guided": Row(lambda case: case.guided.frames),
    "guided, protected": Row(lambda case: case.protected(case.guided)),
    "by patches": Row(lambda case: case.guided_by_patches.frames),
    "by patches, protected": Row(lambda case: case.protected(case.guided_by_patches)),
    "original sites": Row(
        lambda case: case.sample(with_original_sites(case.editor, ORIGINAL)).frames, of="i2vgen"
    ),
    "static": Row(lambda case: np.repeat(case.truth.frames[:1], case.frames, axis=0)),
    "source": Row(lambda case: case.truth.source),
    "warp": Row(_carried(baselines.warp), needs="cv2"),
    "difference": Row(_carried(baselines.difference), needs="cv2"),
    "copy": Row(_carried(baselines.copy)),
    "random": Row(lambda case: case.sample(NO_INJECTION, random_ratio=1.0).frames),
    "inverted": Row(lambda case: case.sample(NO_INJECTION).frames),
    "random, injected": Row(lambda case: case.sample(random_ratio=1.0).frames),
    "autoencoder": Row(lambda case: _autoencoded(case, case.truth.frames)),
    "source, autoencoded": Row(
        lambda case: _autoencoded(case, case.truth.source), reconstructs=True
    ),
    "reconstruction": Row(_reconstruction, reconstructs=True),
    # of weights that solve all steps, there are no offsets, and it is the row above
    "without offsets": Row(lambda case: _reconstruction(case, False), reconstructs=True),
}
"""Name -> row, in the order of the table. "edit" is what the others are compared with."""
