"""The inputs that all blocks of a UNet share in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardContext:
    """The inputs that all blocks of a UNet share in one forward pass, for b videos of f frames.

    The features of the network hold the frames of all videos as one batch of images,
    (b f, h, w, c), with the frames of a video next to each other, so that spatial layers need not
    know about time. The tensors of this class have one batch entry per video.
    """

    time_embedding: Tensor
    """(b, t): embedding of the timestep and of other numbers for a whole video, such as fps."""
    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site (path in the network) of a cross-attention -> key and value there of the m context
    vectors, (b, m, heads, d) each. These are computed once per run, since they do not depend on the
    timestep."""
    frames: int = 1
    """Number of frames per video, f; 1 for images."""
