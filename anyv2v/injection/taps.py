"""Hooks at the named sites of a network: what sees, keeps and replaces features.

Knows names and tensors; knows no network. A network comes to a site twice: with what it is about
to compute there (`Taps.feature`), and after an attention with its result (`Taps.output`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError

Kept = Mapping[str, tuple[Tensor, ...]]
"""Site -> what `Record` kept there."""


class Feature(Protocol):
    """What a network is about to compute at a site.

    The tensors are one, h, of a residual branch, and three, query, key and value, of an attention.
    Branches are outermost in the rows of each. A tensor with fewer rows than `rows` is shared: all
    branches use it.
    """

    @property
    def rows(self) -> int:
        """How many rows all branches together have here."""

    @property
    def own(self) -> Feature:
        """As the network computes it, if other taps have changed it already; else itself."""

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """(h,), or (q, k, v).

        With more than one of `branches`, as many of which the rows are, h or q and k are computed
        of the first alone; v is always of all. ValueError: rows that are not whole branches.
        """

    def keep(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """What `restore` needs to put computed tensors back; `compact`: the least of that.

        h; q and k. Compact: the input of a spatial attention, the probabilities of a temporal one.
        """

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As `compute`, from what was kept, which is not computed again; v is.

        In place of q and k it may give what the layer makes of them: (probabilities, v).
        """


class Taps:
    """Called at the named sites of a network with its features; what it returns is used instead.

    This class changes nothing. Subclass it, override one of `hidden`, `qk`, `qkv` and `output`, and
    pass an object to `predict` or to a run. Dim 0 of every tensor starts with the branch: rows lie
    as (branch, rest), and in an edit the source is the first of the branches. An object serves one
    run at a time.
    """

    sites: frozenset[str] | None = None
    """Where it is called; None: everywhere."""
    step: int = -1
    """Index of the step that is predicted; a run sets it, and the next two, before each one."""
    steps: int = 0
    """How many steps the schedule has."""
    branches: int = 1
    """How many branches the rows are of, the source included."""

    def active(self, step: int, steps: int) -> bool:
        """Whether it wants to be called in a step of `steps`: asked while a run is planned.

        In an active step of an edit the source is in the batch, [source, branch, branch, ...]. In
        other steps nothing of this object is called.
        """
        return True

    def hidden(self, site: str, h: Tensor) -> Tensor:
        """Residual feature h (g b f, h, w, c) before the block's input is added: same shape.

        Or fewer rows, a divisor of those it had: groups of that many rows then share them.
        """
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key of an attention, after their projections: same shapes.

        Spatial: (g b f, h w, heads, d). Temporal: (g b, f, h w, heads, d). Cross: q
        (g b, f h w, heads, d), k (g b, m, heads, d). Both may come back with fewer rows, a divisor
        of those they had: groups of that many rows of values then share them.
        """
        return q, k

    def qkv(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of an attention: same shapes; v has the shape of k."""
        q, k = same_but_rows("qk", site, self.qk(site, q, k), (q, k))
        return q, k, v

    def output(self, site: str, y: Tensor) -> Tensor:
        """Result of an attention after its output projection, before it is added: same shape.

        Spatial (g b f, h w, c), temporal (g b, f, h w, c), cross (g b, f h w, c).
        """
        return y

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """The tensors to go on with at a site: (h,), or (q, k, v). Computes and calls the others.

        Override it to decide what is computed at all.
        """
        tensors = feature.compute()
        if len(tensors) == 1:
            return same_but_rows("hidden", site, (self.hidden(site, *tensors),), tensors)
        q, k, v = same_but_rows("qkv", site, self.qkv(site, *tensors), tensors)
        return q, k, same("qkv", site, v, tensors[2])

    def source(self, x: Tensor) -> Tensor:
        """The source's rows of x (g rest, ...), repeated for every branch: the shape of x."""
        return torch.cat([x[: rows_of_one(x, self.branches)]] * self.branches)


def calls(taps: Taps, site: str | None) -> bool:
    """Whether taps are called at a site; a block that has none calls no taps.

    Where not, a residual feature need not exist by itself: its bias may be added in a later sum.
    """
    return site is not None and (taps.sites is None or site in taps.sites)


def active_steps(taps: Taps | None, steps: int) -> frozenset[int]:
    """The steps of a run in which taps want to be called; asked once, before it."""
    if taps is None:
        return frozenset()
    wanted = [
        checks.flag(f"taps: active({i}, {steps})", taps.active(i, steps)) for i in range(steps)
    ]
    return frozenset(i for i in range(steps) if wanted[i])


def rows_of_one(x: Tensor, branches: int) -> int:
    """How many rows of x (g rest, ...) each of so many branches has. ValueError: not whole ones."""
    if x.shape[0] % branches:
        raise ValueError(f"{x.shape[0]} rows are not {branches} branches")
    return x.shape[0] // branches


def repeated(x: Tensor, rows: int) -> Tensor:
    """x (r, ...) as often as `rows` needs it, (rows, ...). ValueError: r does not divide `rows`."""
    times, rest = divmod(rows, x.shape[0])
    if rest or not times:
        raise ValueError(f"{x.shape[0]} rows of a feature cannot be shared by {rows}")
    return x if times == 1 else torch.cat([x] * times)


def same(method: str, site: str, given: object, wanted: Tensor) -> Tensor:
    """`given`, which a method of taps gave, if it is a tensor of the shape and dtype wanted."""
    if not isinstance(given, Tensor) or (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
        raise InputError(_gave(method, site, given, wanted))
    return given


def same_but_rows(
    method: str, site: str, given: object, wanted: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Likewise, of as many tensors as wanted; each may have a divisor of the rows."""
    if not isinstance(given, Sequence) or len(given) != len(wanted):
        raise InputError(_gave(method, site, given, *wanted))
    for x, right in zip(given, wanted, strict=True):
        shared = isinstance(x, Tensor) and x.ndim and x.shape[0] and not len(right) % len(x)
        same(method, site, x, right[: len(x)] if shared else right)
    return tuple(given)


def _gave(method: str, site: str, given: object, *wanted: Tensor) -> str:
    some = given if isinstance(given, (tuple, list)) and given else (given,)
    gave, right = (", ".join(map(checks.shown, x)) for x in (some, wanted))
    return f"taps: {method} gave {gave} at {site}, not {right}"


class Captured(Taps):
    """Taps whose passes may be captured in a CUDA graph, and are not called when it is replayed.

    So an object promises that all with the same `signature` do the same operations, and nothing
    besides. A subclass has to promise for itself: what it overrides, an inherited signature does
    not know of.
    """

    def signature(self) -> Hashable | None:
        """What passes have in common that one captured pass may serve. None: none may."""
        return None

    def reads(self) -> Kept:
        """The tensors that a pass reads."""
        return {}

    def leaves(self) -> dict[str, tuple[Tensor, ...]]:
        """The tensors that a pass has left."""
        return {}

    def reading(self, kept: Kept) -> Captured:
        """The same taps with nothing left yet, reading other tensors of the same shapes."""
        return self

    def __init_subclass__(cls):
        if "signature" not in vars(cls):
            cls.signature = Captured.signature
        computes = cls.feature is not Taps.feature and cls.feature.__module__ == __name__
        if computes and (idle := [x for x in ("hidden", "qk", "qkv") if x in vars(cls)]):
            raise InputError(
                f"{cls.__name__}: its {idle[0]} would never be called, because its base decides "
                "what is computed; override `feature`, or subclass Taps"
            )


class _Nothing(Captured):
    sites = frozenset()

    def signature(self):
        return "nothing"


NO_TAPS = _Nothing()


class ShareSource(Captured):
    """Rows are [source, branch, branch, ...]: at `sites` every branch uses the source's features.

    The paper's injection (arXiv 2403.14468, section 4.2), with the source in the batch. Residual
    features, queries and keys are computed of the source alone.
    """

    def __init__(self, sites: Iterable[str], branches: int):
        """`branches` counts the source too."""
        self.sites = checks.names("sites", sites)
        self.branches = checks.whole("branches", branches)

    def feature(self, site, feature):
        return feature.compute(self.branches)

    def signature(self):
        return "share", self.sites, self.branches


class Recorded(Exception):
    """Everything that was to be recorded is; the rest of the forward pass is not needed."""


class Record(Captured):
    """Rows are the source alone: keeps what passes at `sites`, in `kept`.

    `compact` keeps less, from which the same is made again: the input of a spatial attention, the
    probabilities of a temporal one. `stop` raises `Recorded` at the last of the sites.
    """

    def __init__(self, sites: Iterable[str], compact: bool = False, stop: bool = False):
        self.sites = checks.names("sites", sites)
        self.compact, self.stop = checks.flag("compact", compact), checks.flag("stop", stop)
        self.kept: dict[str, tuple[Tensor, ...]] = {}

    def feature(self, site, feature):
        tensors = feature.compute()
        self.kept[site] = feature.keep(tensors, self.compact)
        if self.stop and len(self.kept) == len(self.sites):
            raise Recorded("all is recorded, and the pass ended there, as `stop` asks for")
        return tensors

    def signature(self):
        return "record", self.sites, self.compact, self.stop

    def leaves(self):
        return self.kept

    def reading(self, kept):
        return Record(self.sites, self.compact, self.stop)


class Replay(Captured):
    """Rows are branches without the source: puts back what a `Record` kept.

    Features that were kept are not computed.
    """

    def __init__(self, kept: Kept):
        checks.kind("kept", kept, Mapping, "a mapping of sites to what `Record` kept")
        self.kept, self.sites = kept, frozenset(kept)

    def feature(self, site, feature):
        return feature.restore(self.kept[site])

    def signature(self):
        kept = self.kept.items()
        return "replay", frozenset((s, tuple((x.shape, x.dtype) for x in xs)) for s, xs in kept)

    def reads(self):
        return self.kept

    def reading(self, kept):
        return Replay(kept)


class Chain(Taps):
    """One after the other: an injection's own taps, then a caller's.

    The second are given the features as the first left them, and of all rows: what branches share
    is repeated for each. Probabilities that the first puts back are no feature, so it must not be a
    `Replay` of compact ones.
    """

    def __init__(self, first: Taps, then: Taps):
        self.first, self.then = first, then
        both = first.sites, then.sites
        self.sites = None if None in both else frozenset().union(*both)

    def feature(self, site, feature):
        if not calls(self.first, site):
            return self.then.feature(site, feature)
        tensors = self.first.feature(site, feature)
        if not calls(self.then, site):
            return tensors
        return self.then.feature(site, _Left(tensors, feature))

    def output(self, site, y):
        for taps in (self.first, self.then):
            y = same("output", site, taps.output(site, y), y) if calls(taps, site) else y
        return y


@dataclass(frozen=True)
class _Left:
    """A `Feature` whose tensors are what other taps left."""

    tensors: tuple[Tensor, ...]
    own: Feature

    @property
    def rows(self) -> int:
        return self.own.rows

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        tensors = [repeated(x, self.rows) for x in self.tensors]
        one = rows_of_one(tensors[0], branches)
        # v, the third, stays that of all branches
        return tuple(x[:one] if i < 2 else x for i, x in enumerate(tensors))

    def keep(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        # the compact form is made of the layer's input, which knows nothing of other taps
        return self.own.keep(tensors, compact=False)

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        restored = self.own.restore(kept)
        # values as the other taps left them
        return restored if len(restored) == 1 else (*restored[:-1], self.tensors[-1])
