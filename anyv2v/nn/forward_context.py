"""The inputs that every block of a UNet reads besides its own features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardContext:
    """What the blocks of one forward pass have in common, for a batch of b videos of f frames.

    Features hold the frames of all videos as one batch of images, (b f, h, w, c) with the frames
    of a video next to each other, so that spatial layers need not know about time. The tensors
    here have one entry per video.
    """

    time_embedding: Tensor
    """(b, t): embedding of the timestep and of whatever else is the same at every position."""
    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site of a cross-attention -> the context's key and value there, (b, m, heads, d) each.

    The network computes them once per run from m context vectors, since they do not depend on the
    timestep.
    """
    frames: int = 1
    """Frames per video, f; 1 for images."""
