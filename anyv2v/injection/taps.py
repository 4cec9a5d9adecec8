"""Record and replay of features. Knows names and tensors; knows no network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError


class Projections(Protocol):
    """What an attention layer lets taps do with it."""

    def project(self, x: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor]:
        """Query and key of x; the key of a context is known already."""

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """The least from which the layer can do without projecting x again."""

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the layer attends by, from query and key or from what `compact` gave."""


class Taps:
    """Is shown a feature at each named site of a network and says what goes on from there.

    Dim 0 of every feature starts with the branch: rows lie as (branch, rest). This class changes
    nothing; subclass it to read or to change features, and pass the object to `predict`.
    `hidden` and `qk` see what was computed; the methods after them decide what is.
    """

    sites: frozenset[str] | None = None
    """Where it does anything; None: perhaps everywhere."""

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

    def looks_at(self, site: str | None) -> bool:
        """Whether `residual` has to be asked at a site.

        Elsewhere the residual feature need not exist by itself: a bias may be added in its sum with
        the input. Only who promises by a `signature` to do nothing outside `sites` is not asked.
        """
        return self.sites is None or site in self.sites or self.signature() is None

    def residual(
        self,
        site: str | None,
        branch: Callable[[Tensor, Tensor | None], Tensor],
        x: Tensor,
        time: Tensor | None,
    ) -> Tensor:
        """The residual feature of x (g b f, h, w, c), time (g b, t): branch(x, time), tapped."""
        return self.hidden(site, branch(x, time))

    def project(
        self, site: str | None, layer: Projections, x: Tensor, key: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What the layer attends by: query and key of x, tapped, or its probabilities."""
        return self.qk(site, *layer.project(x, key))

    def leaving(self, site: str | None, x: Tensor) -> Tensor:
        """The rows of x that are still needed after a site: the last ones."""
        return x

    def signature(self) -> Hashable | None:
        """What all taps have in common that a pass of the network, captured once, may serve.

        None: every pass calls these. Whoever returns anything else promises that taps with the same
        signature do the same operations on what they are shown, and nothing besides: they are not
        called when the pass is replayed. A subclass has to promise for itself.
        """
        return (self.sites,) if type(self) is Taps else None

    def __init_subclass__(cls):
        if "signature" not in vars(cls):
            cls.signature = Taps.signature


NO_TAPS = Taps()
NO_TAPS.sites = frozenset()


class ShareSource(Taps):
    """Rows are [source, branch, branch, ...]: at `sites` every branch uses the source's features.

    The paper's injection (arXiv 2403.14468, section 4.2), with the source in the batch. Only the
    source's features are computed there.
    """

    def __init__(self, sites: Iterable[str], branches: int, last: str | None = None):
        """`branches` counts the source too. After the site `last` the source's rows leave."""
        self.sites: frozenset[str] = checks.names("sites", sites)
        self.branches, self.last = checks.whole("branches", branches), last
        if last is not None and checks.text("last", last) not in self.sites:
            raise InputError(f"last: {checks.shown(last)} is none of the sites")

    def hidden(self, site: str, h: Tensor) -> Tensor:
        return torch.cat([self._source(h)] * self.branches) if site in self.sites else h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._source(q), self._source(k)) if site in self.sites else (q, k)

    def residual(self, site, branch, x, time):
        if site not in self.sites:
            return super().residual(site, branch, x, time)
        source = branch(self._source(x), None if time is None else self._source(time))
        return torch.cat([source] * (self.branches - (site == self.last)))

    def project(self, site, layer, x, key):
        if site not in self.sites:
            return super().project(site, layer, x, key)
        return layer.project(self._source(x), None if key is None else self._source(key))

    def leaving(self, site, x):
        return x[len(self._source(x)) :] if site is not None and site == self.last else x

    def signature(self):
        return "share", self.sites, self.branches, self.last

    def _source(self, x: Tensor) -> Tensor:
        if x.shape[0] % self.branches:
            raise ValueError(f"{x.shape[0]} rows are not {self.branches} branches")
        return x[: x.shape[0] // self.branches]


class Recorded(Exception):
    """Everything that was to be recorded is; the rest of the forward pass is not needed."""


class Record(Taps):
    """Rows are the source alone: keeps what passes at `sites`, in `kept`.

    `compact` keeps less, from which the same is made again: the input of a spatial attention, the
    probabilities of a temporal one. `stop` raises `Recorded` at the last of the sites.
    """

    def __init__(self, sites: Iterable[str], compact: bool = False, stop: bool = False):
        self.sites: frozenset[str] = checks.names("sites", sites)
        self.compact, self.stop = checks.flag("compact", compact), checks.flag("stop", stop)
        self.kept: dict[str, tuple[Tensor, ...]] = {}

    def hidden(self, site: str, h: Tensor) -> Tensor:
        self._keep(site, lambda: (h,))
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        self._keep(site, lambda: (q, k))
        return q, k

    def project(self, site, layer, x, key):
        q, k = layer.project(x, key)
        self._keep(site, lambda: layer.compact(x, q, k) if self.compact else (q, k))
        return q, k

    def signature(self):
        return "record", self.sites, self.compact, self.stop

    def _keep(self, site: str | None, make: Callable[[], tuple[Tensor, ...]]) -> None:
        if site in self.sites:
            self.kept[site] = make()
            if self.stop and len(self.kept) == len(self.sites):
                raise Recorded


class Replay(Taps):
    """Rows are branches without the source: puts back what a `Record` kept.

    Features that were kept are not computed.
    """

    def __init__(self, kept: Mapping[str, tuple[Tensor, ...]]):
        checks.kind("kept", kept, Mapping, "a mapping of sites to what `Record` kept")
        self.kept, self.sites = kept, frozenset(kept)

    def hidden(self, site: str, h: Tensor) -> Tensor:
        return _spread(self.kept[site][0], h) if site in self.kept else h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.kept[site] if site in self.kept else (q, k)

    def residual(self, site, branch, x, time):
        if site not in self.kept:
            return super().residual(site, branch, x, time)
        return _spread(self.kept[site][0], x)

    def project(self, site, layer, x, key):
        if site not in self.kept:
            return super().project(site, layer, x, key)
        return layer.restore(self.kept[site])

    def signature(self):
        kept = self.kept.items()
        return "replay", frozenset((s, tuple((x.shape, x.dtype) for x in xs)) for s, xs in kept)


def _spread(source: Tensor, like: Tensor) -> Tensor:
    """The source's rows, once for every branch in (g b f, h, w, any c)."""
    branches, rest = divmod(like.shape[0], source.shape[0])
    if rest or source.shape[1:-1] != like.shape[1:-1]:
        raise ValueError(f"features {tuple(source.shape)} do not fit {tuple(like.shape)}")
    return torch.cat([source] * branches)
