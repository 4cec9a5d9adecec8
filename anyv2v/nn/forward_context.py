"""What steers the blocks of a network at one timestep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Steering:
    """The inputs that all blocks share, g b branches of videos in their rows."""

    emb: Tensor
    """(g b, t): embedding of the timestep and of what else does not change with the place."""
    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site of a cross-attention -> key and value, (g b, m, heads, d) each."""
    frames: int
    """How many rows of features (g b f, ...) lie beside one another for each branch."""
