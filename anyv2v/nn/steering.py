"""What the blocks of a network are told besides the features, and by which rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Steering:
    """Of one timestep. Features are (g b f, ...), what is here has one row for each of the g b.

    Features may have fewer rows than that, twice: in the beginning, where branches that differ
    only in their context share a row until `spread` gives each its own; and in the end, after the
    first rows have left (`Taps.leaving`).
    """

    time: Tensor
    """(g b, t): embedding of the timestep and of what else does not change with the place."""
    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site of a cross-attention -> key and value, (g b, m, heads, d) each."""
    frames: int
    spread_by: Tensor | None = None
    """For each branch the row of features that stands for it, as long as rows are shared."""

    def time_of(self, x: Tensor) -> Tensor:
        return self._last(self.time, x)

    def context_of(self, site: str, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.context[site]
        return self._last(key, x), self._last(value, x)

    def spread(self, x: Tensor) -> Tensor:
        """Each branch's own rows of x (g b f, ...)."""
        if self.spread_by is None:
            return x
        return x.unflatten(0, (-1, self.frames))[self.spread_by].flatten(0, 1)

    def _last(self, told: Tensor, x: Tensor) -> Tensor:
        return told[told.shape[0] - x.shape[0] // self.frames :]


def rest(x: Tensor, like: Tensor) -> Tensor:
    """The rows of x that `like` still has: the last ones."""
    return x[x.shape[0] - like.shape[0] :]
