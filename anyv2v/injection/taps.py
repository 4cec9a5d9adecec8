"""Record and replay of features. Knows names and tensors; knows no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Taps:
    """Is shown a feature at each named site of a network and says what goes on from there.

    Dim 0 of every feature starts with the branch: rows lie as (branch, rest). This class changes
    nothing; subclass it to read or to change features, and pass the object to `predict`.
    """

    def hidden(self, site: str, h: Tensor) -> Tensor:
        """A residual feature h (g b f, h, w, c); gives back the same shape."""
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key of an attention, after their projections.

        Spatial: (g b f, h w, heads, d). Temporal: (g b, f, h w, heads, d). Cross: q
        (g b, f h w, heads, d), k (g b, m, heads, d). May give back fewer rows than it got, a
        divisor of them: groups of that many rows of values then share them.
        """
        return q, k


NO_TAPS = Taps()


class ShareSource(Taps):
    """Rows are [source, branch, branch, ...]: at `sites` every branch uses the source's features.

    The paper's injection (arXiv 2403.14468, section 4.2), with the source in the batch.
    """

    def __init__(self, sites: Iterable[str], branches: int):
        """`branches` counts the source too."""
        self.sites, self.branches = frozenset(sites), branches

    def hidden(self, site: str, h: Tensor) -> Tensor:
        return _spread(self._source(h), h) if site in self.sites else h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._source(q), self._source(k)) if site in self.sites else (q, k)

    def _source(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.branches:
            raise ValueError(f"{x.shape[0]} rows are not {self.branches} branches")
        return x[: x.shape[0] // self.branches]


class Record(Taps):
    """Rows are the source alone: keeps what passes at `sites`, in `kept`."""

    def __init__(self, sites: Iterable[str]):
        self.sites: frozenset[str] = frozenset(sites)
        self.kept: dict[str, tuple[Tensor, ...]] = {}

    def hidden(self, site: str, h: Tensor) -> Tensor:
        if site in self.sites:
            self.kept[site] = (h,)
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if site in self.sites:
            self.kept[site] = (q, k)
        return q, k


class Replay(Taps):
    """Rows are branches without the source: puts back what a `Record` kept."""

    def __init__(self, kept: Mapping[str, tuple[Tensor, ...]]):
        self.kept = kept

    def hidden(self, site: str, h: Tensor) -> Tensor:
        return _spread(self.kept[site][0], h) if site in self.kept else h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if site not in self.kept:
            return q, k
        query, key = self.kept[site]
        return query, key


def _spread(source: Tensor, h: Tensor) -> Tensor:
    """The source's rows, once for every branch in h."""
    branches, rest = divmod(h.shape[0], source.shape[0])
    if rest or source.shape[1:] != h.shape[1:]:
        raise ValueError(f"features {tuple(source.shape)} do not fit {tuple(h.shape)}")
    return torch.cat([source] * branches)
