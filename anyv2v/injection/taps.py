"""Hooks at the named sites of a network, and the paper's injection written as such hooks.

The paper (AnyV2V, arXiv 2403.14468, section 4.2) replaces the edit's own features by the source's.
No line here says `q_edit = q_source`: at an injected site the edit's own residual feature, or its
query and key, are never computed. The source's are computed once, or were recorded, and every
branch uses them. From the decision to the kernel:

which sites, at which steps     pipeline/step_plan.py (`StepPlan`), from the fractions of the
                                schedule (injection/fractions.py) and the backbone's choice of sites
which hook a step gets          pipeline/denoise.py (`injecting_predictor`)
the replacing itself            here: `ShareSource` if the source is a branch of the batch,
                                `Replay` if its features were recorded before, by `Record`
h, q and k of the source alone  nn/resnet.py, nn/attention.py: `compute(branches)` of a `Feature`
h is added to every branch      nn/resnet.py: `repeat_to_batch`
one softmax for every branch    kernels/attention, kernels/short_attention: q and k of one branch,
                                v of all

A network comes to a site twice: with what it is about to compute there (`Taps.feature`), and, in
an attention, with the result (`Taps.output`). This module knows names and tensors, and no network.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError

Features = Mapping[str, tuple[Tensor, ...]]
"""Site -> the tensors that `Record` recorded there."""


class Feature(Protocol):
    """What a network is about to compute at one site.

    The tensors are (h,) for a residual branch and (q, k, v) for an attention. Dim 0 is the batch,
    branch outermost. A tensor with a smaller dim 0 than `batch` is shared by all branches.
    """

    @property
    def batch(self) -> int:
        """Length of dim 0 for all branches together."""
        ...

    @property
    def unmodified(self) -> Feature:
        """This feature as the network computes it, before other taps changed it."""
        ...

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes (h,), or (q, k, v).

        `branches`: how many branches the batch consists of. With more than one, h or q and k are
        computed for the first branch alone, and v for all of them. ValueError if the batch is not a
        multiple of `branches`.
        """
        ...

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns what `replay` needs to use computed `tensors` again: h, or q and k.

        `compact` selects the smallest such tensor: the layer's input for spatial attention, the
        probabilities for temporal attention. Cross-attention and h have no smaller form.
        """
        ...

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the tensors of `compute`, with recorded ones in place of h, or q and k.

        v is computed for the batch. Recorded probabilities come back as (probabilities, v).
        """
        ...


class Taps:
    """Hooks that a network calls at its named sites; what they return is used instead.

    This class changes nothing. Subclass it, override one of `hidden`, `qk`, `qkv` and `output`, and
    pass an object to `predict` or to a run. Dim 0 of every tensor is the batch, branch outermost;
    in an edit the source is the first branch. An object serves one run at a time.
    """

    sites: frozenset[str] | None = None
    """The sites at which the hooks are called; None: all sites."""
    step: int = -1
    """Index of the current step. A run sets this and the next two attributes before each step."""
    steps: int = 0
    """Number of steps in the schedule."""
    branches: int = 1
    """Number of branches in the batch, the source included."""

    def active(self, step: int, steps: int) -> bool:
        """Whether the hooks are called in a step of a run of `steps`; asked while it is planned.

        In an active step of an edit the source is part of the batch: [source, branch, branch, ...].
        In all other steps no hook of this object is called.
        """
        return True

    def hidden(self, site: str, h: Tensor) -> Tensor:
        """Hook for a residual feature h (g b f, h, w, c), before the block's input is added.

        Returns the same shape, or a dim 0 that divides it: all branches then share the result.
        """
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Hook for query and key of an attention, after their projections.

        Spatial: (g b f, h w, heads, d). Temporal: (g b, f, h w, heads, d). Cross: q
        (g b, f h w, heads, d), k (g b, m, heads, d). Returns the same shapes, or a dim 0 that
        divides theirs: all branches then share the result.
        """
        return q, k

    def qkv(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hook for query, key and value of an attention; v has the shape of k.

        Returns the same shapes; q and k may be shared as in `qk`, v may not.
        """
        q, k = check_returned_or_shared("qk", site, self.qk(site, q, k), (q, k))
        return q, k, v

    def output(self, site: str, y: Tensor) -> Tensor:
        """Hook for the result of an attention after its output projection: same shape.

        Spatial (g b f, h w, c), temporal (g b, f, h w, c), cross (g b, f h w, c). The layer's input
        has not been added yet.
        """
        return y

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns the tensors to go on with at a site, (h,) or (q, k, v).

        Computes the feature and calls the hooks above. Override it to decide what is computed.
        """
        tensors = feature.compute()
        if len(tensors) == 1:
            return check_returned_or_shared("hidden", site, (self.hidden(site, *tensors),), tensors)
        returned = self.qkv(site, *tensors)
        q, k, v = check_returned_or_shared("qkv", site, returned, tensors)
        return q, k, check_returned("qkv", site, v, tensors[2])

    def source(self, x: Tensor) -> Tensor:
        """The source's part of x (g rest, ...), repeated for every branch: the shape of x."""
        return torch.cat([x[: branch_size(x, self.branches)]] * self.branches)


def calls(taps: Taps, site: str | None) -> bool:
    """Whether taps are called at a site; a block without a site calls none.

    Where they are not, a residual feature need not exist by itself: its bias may be added in a
    later sum.
    """
    return site is not None and (taps.sites is None or site in taps.sites)


def active_steps(taps: Taps | None, steps: int) -> frozenset[int]:
    """The indices of the steps of a run in which taps are active; asked once, before the run."""
    if taps is None:
        return frozenset()
    return frozenset(
        i for i in range(steps) if checks.flag(f"taps: active({i}, {steps})", taps.active(i, steps))
    )


def branch_size(x: Tensor, branches: int) -> int:
    """Length along dim 0 of one branch of x. ValueError unless `branches` divides the batch."""
    if x.shape[0] % branches:
        raise ValueError(f"a batch of {x.shape[0]} is not a multiple of {branches} branches")
    return x.shape[0] // branches


def repeat_to_batch(x: Tensor, batch: int) -> Tensor:
    """Repeats x (r, ...) along dim 0 to (batch, ...). ValueError unless r divides `batch`."""
    times, rest = divmod(batch, x.shape[0])
    if rest or not times:
        raise ValueError(f"a feature of batch {x.shape[0]} cannot be shared by a batch of {batch}")
    return x if times == 1 else torch.cat([x] * times)


def check_returned(method: str, site: str, returned: object, expected: Tensor) -> Tensor:
    """`returned` if it has the shape and dtype of `expected`, else InputError with the hook."""
    if not isinstance(returned, Tensor) or (returned.shape, returned.dtype) != (
        expected.shape,
        expected.dtype,
    ):
        raise InputError(_wrong_return(method, site, returned, expected))
    return returned


def check_returned_or_shared(
    method: str, site: str, returned: object, expected: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`returned` if it is as many tensors as `expected`, of their shapes and dtypes.

    Dim 0 may also be a divisor of the expected one: such a tensor is shared by all branches.
    """
    if not isinstance(returned, Sequence) or len(returned) != len(expected):
        raise InputError(_wrong_return(method, site, returned, *expected))
    for x, right in zip(returned, expected, strict=True):
        shared = isinstance(x, Tensor) and x.ndim and x.shape[0] and not len(right) % len(x)
        check_returned(method, site, x, right[: len(x)] if shared else right)
    return tuple(returned)


def _wrong_return(method: str, site: str, returned: object, *expected: Tensor) -> str:
    values = returned if isinstance(returned, (tuple, list)) and returned else (returned,)
    gave, right = (", ".join(map(checks.shown, x)) for x in (values, expected))
    return f"taps: {method} gave {gave} at {site}, not {right}"


class Capturable(Taps):
    """Taps that may run inside a captured CUDA graph, which never calls them when it is replayed.

    All objects with equal `cache_key` must do the same operations on the tensors of
    `graph_inputs`, and nothing else. A subclass has to promise this itself: an inherited key knows
    nothing of what the subclass overrides.
    """

    def cache_key(self) -> Hashable | None:
        """Taps with equal keys may share a captured graph. None: no graph is captured."""
        return None

    def graph_inputs(self) -> Features:
        """The tensors that a forward pass reads; before a replay new ones are copied over them."""
        return {}

    def graph_outputs(self) -> dict[str, tuple[Tensor, ...]]:
        """The tensors that a forward pass recorded; after a replay they are copied out."""
        return {}

    def with_inputs(self, features: Features) -> Capturable:
        """The same taps with other input tensors of the same shapes, and nothing recorded."""
        return self

    def __init_subclass__(cls):
        # the key of a base class does not know what a subclass overrides: no key is inherited
        if "cache_key" not in vars(cls):
            cls.cache_key = Capturable.cache_key
        computes = cls.feature is not Taps.feature and cls.feature.__module__ == __name__
        if computes and (unused := [x for x in ("hidden", "qk", "qkv") if x in vars(cls)]):
            raise InputError(
                f"{cls.__name__}: its {unused[0]} would never be called, because its base decides "
                "what is computed; override `feature`, or subclass Taps"
            )


class _NoTaps(Capturable):
    sites = frozenset()

    def cache_key(self):
        return "nothing"


NO_TAPS = _NoTaps()
"""Taps that are called nowhere."""


class ShareSource(Capturable):
    """The paper's injection with the source in the batch: [source, branch, branch, ...].

    Section 4.2 of arXiv 2403.14468 replaces, at `sites`, the residual feature or the query and key
    of the edit by those of the source. Here `feature.compute(branches)` computes them for the first
    branch, the source, alone; the result has the batch of one branch, and all branches share it
    (`repeat_to_batch` for residual features, one softmax for all values in the attention kernels).
    The edit's own are never computed. v stays every branch's own.
    """

    def __init__(self, sites: Iterable[str], branches: int):
        """`branches`: how many branches the batch has, the source included."""
        self.sites = checks.names("sites", sites)
        self.branches = checks.whole("branches", branches)

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """The source's h, or q and k, for all branches to share; v of every branch."""
        return feature.compute(self.branches)

    def cache_key(self) -> Hashable:
        """The sites and the number of branches."""
        return "share", self.sites, self.branches


class Recorded(Exception):
    """Raised by `Record` when all its sites are recorded, to end the forward pass early."""


class Record(Capturable):
    """Records the features at `sites` into `features`, while the source runs through the network.

    The batch is the source alone. `compact` records the smallest form of each feature, see
    `Feature.record`. `stop` raises `Recorded` at the last of the sites.
    """

    def __init__(self, sites: Iterable[str], compact: bool = False, stop: bool = False):
        # the base class allows None, for all sites; these are always named
        self.sites = self._sites = checks.names("sites", sites)
        self.compact, self.stop = checks.flag("compact", compact), checks.flag("stop", stop)
        self.features: dict[str, tuple[Tensor, ...]] = {}

    @property
    def kept(self) -> dict[str, tuple[Tensor, ...]]:
        """The former name of `features`."""
        return self.features

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Computes the feature, records it, and passes it on unchanged."""
        tensors = feature.compute()
        self.features[site] = feature.record(tensors, self.compact)
        if self.stop and len(self.features) == len(self._sites):
            raise Recorded("all is recorded, and the pass ended there, as `stop` asks for")
        return tensors

    def cache_key(self) -> Hashable:
        """The sites and both settings."""
        return "record", self.sites, self.compact, self.stop

    def graph_outputs(self) -> dict[str, tuple[Tensor, ...]]:
        """The recorded features."""
        return self.features

    def with_inputs(self, features: Features) -> Record:
        """A new recorder with the same settings."""
        return Record(self._sites, self.compact, self.stop)


class Replay(Capturable):
    """The paper's injection with recorded features: the source is not part of the batch.

    At the recorded sites the edit's h, or q and k, are not computed: `feature.replay` puts the
    source's in their place, see `ShareSource`. v is computed for every branch.
    """

    def __init__(self, features: Features):
        """`features`: what `Record` recorded from the source at this step."""
        checks.kind("features", features, Mapping, "a mapping of sites to what `Record` recorded")
        self.features, self.sites = features, frozenset(features)

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """The recorded h, or q and k (or probabilities), and v of every branch."""
        return feature.replay(self.features[site])

    def cache_key(self) -> Hashable:
        """The sites, with the shapes and dtypes of their tensors."""
        return "replay", frozenset(
            (site, tuple((x.shape, x.dtype) for x in tensors))
            for site, tensors in self.features.items()
        )

    def graph_inputs(self) -> Features:
        """The recorded features."""
        return self.features

    def with_inputs(self, features: Features) -> Replay:
        """Replays other features of the same shapes."""
        return Replay(features)


class Chain(Taps):
    """Calls two taps at each site, one after the other: an injection's own, then a caller's.

    The second taps get the features as the first returned them, with the full batch: what branches
    share is repeated for each. `first` must not be a `Replay` of compact features, because
    replayed probabilities are no feature that the second could be given.
    """

    def __init__(self, first: Taps, then: Taps):
        self.first, self.then = first, then
        if first.sites is None or then.sites is None:
            self.sites = None
        else:
            self.sites = first.sites | then.sites

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """The tensors of the second taps, which were given those of the first."""
        if not calls(self.first, site):
            return self.then.feature(site, feature)
        tensors = self.first.feature(site, feature)
        if not calls(self.then, site):
            return tensors
        return self.then.feature(site, _Modified(tensors, feature))

    def output(self, site: str, y: Tensor) -> Tensor:
        """The output after both hooks."""
        for taps in (self.first, self.then):
            y = check_returned("output", site, taps.output(site, y), y) if calls(taps, site) else y
        return y


@dataclass(frozen=True)
class _Modified:
    """A `Feature` whose tensors are those that other taps returned."""

    tensors: tuple[Tensor, ...]
    unmodified: Feature

    @property
    def batch(self) -> int:
        return self.unmodified.batch

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        tensors = [repeat_to_batch(x, self.batch) for x in self.tensors]
        size = branch_size(tensors[0], branches)
        # v, the third, stays that of all branches
        return tuple(x[:size] if i < 2 else x for i, x in enumerate(tensors))

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        # the compact form is made of the layer's input, which knows nothing of other taps
        return self.unmodified.record(tensors, compact=False)

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        replayed = self.unmodified.replay(recorded)
        # values as the other taps returned them
        return replayed if len(replayed) == 1 else (*replayed[:-1], self.tensors[-1])
