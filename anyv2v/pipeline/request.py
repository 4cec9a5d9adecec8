"""`EditRequest` and `Edit`: the arguments of one of several edits, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults, Guidance
from anyv2v.checks import shown
from anyv2v.media.frames import Video, describe_clip
from anyv2v.media.image import Frame
from anyv2v.pipeline.guide import Guide


@dataclass(frozen=True, repr=False)
class EditRequest:
    """One of several edits of a source, with its own values for arguments of `Editor.edit`.

    `Editor.edit_many` and `edit_each` check the values.
    """

    frame: Frame
    """The edited first frame: a path, a uint8 array (h, w, 3) or a PIL image."""
    prompt: str
    """The description of the edited video."""
    negative_prompt: str | None = None
    """The prompt that guidance leads away from; None: the weights' own."""
    guidance: float | Mapping[str, float] | None = None
    """The strength of guidance, or a mapping with one for each scale; None: the weights' own."""
    random_ratio: float = 0.0
    """Weight, 0 to 1, of random noise mixed into the inverted latents."""
    seed: int = 0
    """Seed of all noise that is drawn."""
    fit: str = "crop"
    """How `frame` is brought to the clip's size: "crop", "stretch" or "pad"."""
    noise: Tensor | None = None
    """The noise for `random_ratio`, in the shape of the latents; None draws it from `seed`."""
    step_noise: Sequence[Tensor] | None = None
    """One tensor per step in the shape of the latents, for samplers that add noise; None draws
    them from `seed`."""
    guide: str | Video | Guide | None = None
    """Where a guess of the edited video comes from, from which sampling starts: "auto" (features of
    the network), "patches" (pixels), a `Video` of the source's length and size, which is the guess
    itself, or a `Guide`. None: sampling starts from the source's inverted latents."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"EditRequest({', '.join(f'{name}={shown(x)}' for name, x in values.items())})"

    def prompts(self, defaults: Defaults) -> Prompts:
        """Returns prompt, negative prompt and guidance, with those of `defaults` in place of None.

        Raises InputError if one of them, `random_ratio` or `seed` is invalid; the other fields are
        not checked here.
        """
        negative = (
            defaults.negative_prompt if self.negative_prompt is None else self.negative_prompt
        )
        checks.texts(prompt=self.prompt, negative_prompt=negative)
        checks.fraction("random_ratio", self.random_ratio)
        checks.seed(self.seed)
        return Prompts(self.prompt, negative, defaults.scales(self.guidance))


class Prompts(NamedTuple):
    """The prompts of one edit, and how strongly guidance leads from one to the other."""

    prompt: str
    """The description of the edited video."""
    negative_prompt: str
    """The prompt that guidance leads away from."""
    guidance: Guidance
    """Name of each guidance scale of the backbone -> its value."""


@dataclass(frozen=True, repr=False)
class Edit:
    """The result of an edit, or of another run that samples a video."""

    frames: np.ndarray
    """The frames of the video, uint8 RGB (f, h, w, 3)."""
    fps: float
    """Frames per second; those of the source's video for an edit of it."""
    latents: Tensor
    """The clean latents that the frames were decoded from, (1, c, f', h', w') float32."""
    first: np.ndarray | None = None
    """The edited first frame as it was given, fitted to the clip's size: uint8 RGB (h, w, 3).
    `frames[0]` is what the model made of it. None for a video that is no edit of a source."""
    kept: float | None = None
    """The share of the source's pixels that `protect` put back, 0 to 1; None before `protect`."""

    def __repr__(self) -> str:
        return f"Edit({describe_clip(self.frames, self.fps)}, latents {tuple(self.latents.shape)})"
