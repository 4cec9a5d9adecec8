"""What an edit is asked for by, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Defaults
from anyv2v.checks import shown
from anyv2v.media.frames import describe_clip
from anyv2v.media.image import Frame


@dataclass(frozen=True, repr=False)
class EditRequest:
    """One of several edits of a source: what `Editor.edit` takes for it.

    None is what the weights work best with.
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
    """For samplers that add noise: one tensor per step, in the shape of the latents."""

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"EditRequest({', '.join(f'{name}={shown(x)}' for name, x in told.items())})"

    def filled(self, defaults: Defaults) -> EditRequest:
        """The same with the weights' own in place of None, checked but for frame and noise."""
        negative = (
            defaults.negative_prompt if self.negative_prompt is None else self.negative_prompt
        )
        checks.texts(prompt=self.prompt, negative_prompt=negative)
        checks.fraction("random_ratio", self.random_ratio)
        checks.seed(self.seed)
        guidance = defaults.scales(self.guidance)
        return replace(self, negative_prompt=negative, guidance=guidance)


@dataclass(frozen=True, repr=False)
class Edit:
    frames: np.ndarray
    """(f, h, w, 3) uint8 RGB."""
    fps: float
    latents: Tensor
    """(1, c, f', h', w') float32, clean."""

    def __repr__(self) -> str:
        return f"Edit({describe_clip(self.frames, self.fps)}, latents {tuple(self.latents.shape)})"
