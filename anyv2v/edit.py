"""What an edit is asked for by, and what comes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from anyv2v.checks import shown
from anyv2v.media.clip import clip

NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
"""The original's."""

Frame = str | os.PathLike | np.ndarray | Image.Image

SourcePass = Literal["shared", "always", "separate"]
"""How the source's features come to a step that injects them.

shared: what was recorded is replayed, else its rows ride along in the batch of the steps that
inject something.
always: they ride along in every step, as in the original.
separate: it is run by itself first, recorded, and replayed.
"""


@dataclass(frozen=True, repr=False)
class EditRequest:
    """One of several edits of a source: what `Editor.edit` takes for it."""

    frame: Frame
    prompt: str
    negative_prompt: str = NEGATIVE_PROMPT
    guidance: float = 9.0
    random_ratio: float = 0.0
    seed: int = 0
    fit: str = "crop"
    noise: Tensor | None = None

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return f"EditRequest({', '.join(f'{name}={shown(x)}' for name, x in told.items())})"


@dataclass(frozen=True, repr=False)
class Edit:
    frames: np.ndarray
    """(f, h, w, 3) uint8 RGB."""
    fps: float
    latents: Tensor
    """(1, c, f, h/s, w/s) float32, clean."""

    def __repr__(self) -> str:
        return f"Edit({clip(self.frames, self.fps)}, latents {tuple(self.latents.shape)})"
