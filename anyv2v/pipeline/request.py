"""`EditRequest` and `Edit`: what an edit is made of, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults, Guidance
from anyv2v.checks import shown
from anyv2v.media.frames import describe_clip
from anyv2v.media.image import Frame


@dataclass(frozen=True, repr=False)
class EditRequest:
    """One of several edits of a source, with the arguments of `Editor.edit` that are its own.

    None stands for the weights' own default.
    """

    frame: Frame
    prompt: str
    negative_prompt: str | None = None
    guidance: float | Mapping[str, float] | None = None
    random_ratio: float = 0.0
    seed: int = 0
    fit: str = "crop"
    noise: Tensor | None = None
    step_noise: Sequence[Tensor] | None = None
    """One tensor per step in the shape of the latents, for samplers that add noise."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"EditRequest({', '.join(f'{name}={shown(x)}' for name, x in values.items())})"

    def prompts(self, defaults: Defaults) -> Prompts:
        """Prompt, negative prompt and guidance, with the weights' own in place of None.

        InputError for them, and for `random_ratio` and `seed`; frame and noise are not checked.
        """
        negative = (
            defaults.negative_prompt if self.negative_prompt is None else self.negative_prompt
        )
        checks.texts(prompt=self.prompt, negative_prompt=negative)
        checks.fraction("random_ratio", self.random_ratio)
        checks.seed(self.seed)
        return Prompts(self.prompt, negative, defaults.scales(self.guidance))


class Prompts(NamedTuple):
    """What the branches of one edit are conditioned on, besides its first frame."""

    prompt: str
    negative_prompt: str
    guidance: Guidance


@dataclass(frozen=True, repr=False)
class Edit:
    """The result of an edit."""

    frames: np.ndarray
    """(f, h, w, 3) uint8 RGB."""
    fps: float
    """Frames per second of the source's clip."""
    latents: Tensor
    """(1, c, f', h', w') float32: the clean latents that were decoded."""

    def __repr__(self) -> str:
        return f"Edit({describe_clip(self.frames, self.fps)}, latents {tuple(self.latents.shape)})"
