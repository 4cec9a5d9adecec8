"""Hooks at the sites (named layers) of a network, and AnyV2V's injection written as such hooks.

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

A network calls its taps at a site with what it is about to compute there (`Taps.feature`) and, in
an attention, once more with the result (`Taps.output`). This module depends on no network.
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
"""Name of a site -> the tensors that `Record` recorded there."""


class Feature(Protocol):
    """What a network is about to compute at one site (named layer), not computed yet.

    Its tensors are (h,) for the residual of a resnet and (q, k, v) for an attention. Dim 0 is the
    batch, one part for each branch (source, negative, edited). A tensor with a smaller dim 0 than
    `batch` is shared by all branches.
    """

    @property
    def batch(self) -> int:
        """The length of dim 0 of h, or of q, k and v, with all branches included."""
        ...

    @property
    def unmodified(self) -> Feature:
        """The feature as the network itself computes it, before other taps changed it."""
        ...

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes and returns (h,), or (q, k, v).

        branches: the number of equal parts that dim 0 consists of. With more than one, h or q and k
        are computed for the first branch alone, and v for all of them. Raises ValueError if `batch`
        is not a multiple of `branches`.
        """
        ...

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns what `replay` needs to reuse `tensors`, a result of `compute`: h, or q and k.

        compact: return the smallest tensor that will do instead, which is the layer's input for
        spatial attention and the probabilities for temporal attention. Cross-attention and h have
        no smaller form.
        """
        ...

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns (h,) or (q, k, v), with h, or q and k, from `recorded`, a result of `record`.

        v is computed for all branches. If attention probabilities were recorded, the result is
        (probabilities, v).
        """
        ...


class Taps:
    """Hooks that a network calls at its sites (named layers); it goes on with what they return.

    This class changes nothing. Subclass it, override `hidden`, `qk`, `qkv` or `output`, and pass an
    object as `taps=` to `Editor.predict`, `edit` or `invert`. Dim 0 of every tensor is the batch,
    one equal part for each branch; in an edit the source is the first branch. In the shapes, g is
    the number of branches, b the batch entries of one branch (1 in an edit), and f the frames. An
    object serves one run at a time.
    """

    sites: frozenset[str] | None = None
    """The names of the sites at which the hooks are called; None: all sites of the network."""
    step: int = -1
    """Index of the current step, 0 the noisiest; a run sets it before each step."""
    steps: int = 0
    """Number of steps in the whole schedule of the run; a run sets it before each step."""
    branches: int = 1
    """Number of branches in the batch, the source included; a run sets it before each step."""

    def active(self, step: int, steps: int) -> bool:
        """Whether the hooks are called in step `step` (0 the noisiest) of a run of `steps`.

        A run asks for every step before it starts. In an active step of an edit the source is part
        of the batch: [source, branch, branch, ...]. The answer holds for all `sites`: to stop
        earlier at some of them, test `self.step` against `self.steps` in the hook itself.
        """
        return True

    def hidden(self, site: str, h: Tensor) -> Tensor:
        """Returns what replaces h (g b f, h, w, c), a resnet's residual before its input is added.

        In Wan h is the output (g b, f, h, w, c) of a feed-forward network, or the value or result
        (g b, f h w, heads, d) of a self-attention. What is returned has the shape and dtype of h; a
        shorter dim 0 that divides the original is repeated, so that all branches share it.
        """
        return h

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what replaces the query and key of an attention, after their projections.

        Spatial: (g b f, h w, heads, d). Temporal: (g b, f, h w, heads, d). Wan's self-attention:
        (g b, f h w, heads, d). Cross: q (g b, f h w, heads, d), k (g b, m, heads, d) for m context
        tokens. In ConsistI2V k also has tokens of the first frame, see
        `anyv2v.backbones.consisti2v.attention`. The results have the same shapes and dtypes; all
        branches share those of a shorter dim 0 that divides the original.
        """
        return q, k

    def qkv(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what replaces the query, key and value of an attention; by default calls `qk`.

        The shapes are those of `qk`, and v has that of k. All branches may share a q and a k with a
        shorter dim 0, as in `qk`; v has to have its full dim 0.
        """
        q, k = check_returned_or_shared("qk", site, self.qk(site, q, k), (q, k))
        return q, k, v

    def output(self, site: str, y: Tensor) -> Tensor:
        """Returns what replaces y, the result of an attention after its output projection.

        Spatial: (g b f, h w, c). Temporal: (g b, f, h w, c). Cross, and Wan's: (g b, f h w, c). The
        layer's input has not been added yet. The result has the shape and dtype of y.
        """
        return y

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns the tensors that the network uses at a site, (h,) or (q, k, v).

        By default computes the feature and passes it through `hidden`, or through `qkv`, which
        calls `qk`. Override it to decide what is computed at all. Raises InputError if a hook
        returns another shape or dtype.
        """
        tensors = feature.compute()
        if len(tensors) == 1:
            return check_returned_or_shared("hidden", site, (self.hidden(site, *tensors),), tensors)
        returned = self.qkv(site, *tensors)
        q, k, v = check_returned_or_shared("qkv", site, returned, tensors)
        return q, k, check_returned("qkv", site, v, tensors[2])

    def source(self, x: Tensor) -> Tensor:
        """Returns the first branch's part of x, the source's, repeated to the full shape of x.

        Raises ValueError if dim 0 of x is not a multiple of `branches`.
        """
        return torch.cat([x[: branch_size(x, self.branches)]] * self.branches)


def calls(taps: Taps, site: str | None) -> bool:
    """Whether `taps` are called at this site; a block without a site (None) calls none.

    Where none are called, a network need not compute the residual feature by itself: it may add
    the feature's bias in a later sum.
    """
    return site is not None and (taps.sites is None or site in taps.sites)


def active_steps(taps: Taps | None, steps: int) -> frozenset[int]:
    """Returns the indices of the steps, of a run of `steps`, in which `taps` are active.

    Calls `Taps.active` once for each step; taps of None are never active. Raises InputError if
    `active` returns anything but True or False.
    """
    if taps is None:
        return frozenset()
    return frozenset(
        i for i in range(steps) if checks.flag(f"taps: active({i}, {steps})", taps.active(i, steps))
    )


def branch_size(x: Tensor, branches: int) -> int:
    """Returns the length of one branch along dim 0 of x, a batch of `branches` equal parts.

    Raises ValueError if `branches` does not divide the length of dim 0.
    """
    if x.shape[0] % branches:
        raise ValueError(f"a batch of {x.shape[0]} is not a multiple of {branches} branches")
    return x.shape[0] // branches


def repeat_to_batch(x: Tensor, batch: int) -> Tensor:
    """Repeats x (r, ...) along dim 0 to (batch, ...), without a copy if r is `batch`.

    Raises ValueError unless r divides `batch`.
    """
    times, rest = divmod(batch, x.shape[0])
    if rest or not times:
        raise ValueError(f"a feature of batch {x.shape[0]} cannot be shared by a batch of {batch}")
    return x if times == 1 else torch.cat([x] * times)


def check_returned(method: str, site: str, returned: object, expected: Tensor) -> Tensor:
    """Returns `returned` if it is a tensor of the shape and dtype of `expected`.

    Otherwise raises InputError, which names the hook that returned it (`method`) and the site.
    """
    if not isinstance(returned, Tensor) or (returned.shape, returned.dtype) != (
        expected.shape,
        expected.dtype,
    ):
        raise InputError(_wrong_return(method, site, returned, expected))
    return returned


def check_returned_or_shared(
    method: str, site: str, returned: object, expected: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Returns `returned` as a tuple if it holds tensors of the shapes and dtypes of `expected`.

    Dim 0 of a tensor may also be a divisor of the expected length: all branches share such a
    tensor. Otherwise raises InputError, which names the hook (`method`) and the site.
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
    """Taps whose forward pass may be captured in a CUDA graph; the graph's replay never calls them.

    All objects with equal `cache_key()` must do the same operations on the tensors of
    `graph_inputs()`, and nothing else. Keys are not inherited, because a base class does not know
    what a subclass overrides: a subclass without a `cache_key` of its own is not captured.
    """

    def cache_key(self) -> Hashable | None:
        """Returns a key; taps with equal keys share a captured graph. None: nothing is captured."""
        return None

    def graph_inputs(self) -> Features:
        """Returns the tensors, by site, that these taps read in a forward pass.

        A captured pass reads copies of them, which are overwritten with new values for each replay.
        """
        return {}

    def graph_outputs(self) -> dict[str, tuple[Tensor, ...]]:
        """Returns the dict, site -> tensors, that these taps fill in a forward pass.

        After a replay, copies of the tensors that the graph has filled are put into it.
        """
        return {}

    def with_inputs(self, features: Features) -> Capturable:
        """Returns taps that do the same with the inputs `features`, and have recorded nothing yet.

        features: site -> tensors, with the sites, shapes and dtypes of `graph_inputs()`.
        """
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
    """AnyV2V's injection with the source in the batch: [source, branch, branch, ...].

    Section 4.2 of arXiv 2403.14468 replaces, at `sites`, the residual feature or the query and key
    of the edit by those of the source. Here `feature.compute(branches)` computes them for the first
    branch, the source, alone; the result has the batch of one branch, and all branches share it
    (`repeat_to_batch` for residual features, one softmax for all values in the attention kernels).
    The edit's own are never computed. The value v stays every branch's own.
    """

    def __init__(self, sites: Iterable[str], branches: int):
        """Injects at `sites` (names of layers) in a batch of `branches`, the source included."""
        self.sites = checks.names("sites", sites)
        self.branches = checks.whole("branches", branches)

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns a residual (h,) or an attention's (q, k, v), with h, q and k of the source alone.

        All branches share these, whose dim 0 is that of one branch; v is that of every branch.
        """
        return feature.compute(self.branches)

    def cache_key(self) -> Hashable:
        """Returns a key made of the sites and the number of branches."""
        return "share", self.sites, self.branches


class Recorded(Exception):
    """Raised by `Record` when all its sites are recorded, to end the forward pass early."""


class Record(Capturable):
    """Records the features at `sites` in the dict `features`, while the source is predicted alone.

    compact: record the smallest form of each feature, see `Feature.record`; by default residuals,
    or queries and keys. stop: raise `Recorded` once all sites are recorded, to end the pass early.
    """

    def __init__(self, sites: Iterable[str], compact: bool = False, stop: bool = False):
        # the base class allows None, for all sites; these are always named
        self.sites = self._sites = checks.names("sites", sites)
        self.compact, self.stop = checks.flag("compact", compact), checks.flag("stop", stop)
        self.features: dict[str, tuple[Tensor, ...]] = {}

    @property
    def kept(self) -> dict[str, tuple[Tensor, ...]]:
        """The same as `features`, which once had this name."""
        return self.features

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Computes the feature, records it, and returns it unchanged.

        Raises `Recorded` with `stop`, if this was the last site to be recorded.
        """
        tensors = feature.compute()
        self.features[site] = feature.record(tensors, self.compact)
        if self.stop and len(self.features) == len(self._sites):
            raise Recorded("all is recorded, and the pass ended there, as `stop` asks for")
        return tensors

    def cache_key(self) -> Hashable:
        """Returns a key made of the sites and the settings `compact` and `stop`."""
        return "record", self.sites, self.compact, self.stop

    def graph_outputs(self) -> dict[str, tuple[Tensor, ...]]:
        """Returns `features`, the dict of the recorded tensors by site."""
        return self.features

    def with_inputs(self, features: Features) -> Record:
        """Returns a new recorder with the same settings; a recorder reads no `features`."""
        return Record(self._sites, self.compact, self.stop)


class Replay(Capturable):
    """AnyV2V's injection with recorded features: the source is not part of the batch.

    At the recorded sites the edit's residual h, or query q and key k, are not computed:
    `feature.replay` puts the source's in their place, see `ShareSource`. The value v is computed
    for every branch.
    """

    def __init__(self, features: Features):
        """Injects `features`, recorded by `Record` from the source at this step, at their sites."""
        checks.kind("features", features, Mapping, "a mapping of sites to what `Record` recorded")
        self.features, self.sites = features, frozenset(features)

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns (h,), (q, k, v) or (probabilities, v): recorded tensors, v of every branch."""
        return feature.replay(self.features[site])

    def cache_key(self) -> Hashable:
        """Returns a key made of the sites, and the shapes and dtypes of their tensors."""
        return "replay", frozenset(
            (site, tuple((x.shape, x.dtype) for x in tensors))
            for site, tensors in self.features.items()
        )

    def graph_inputs(self) -> Features:
        """Returns the recorded features, which a forward pass reads."""
        return self.features

    def with_inputs(self, features: Features) -> Replay:
        """Returns taps that replay other features, of the same sites and shapes."""
        return Replay(features)


class Chain(Taps):
    """Calls the taps `first`, then the taps `then`, at each site that both of them name.

    At a site that only one of them names, that one alone is called. `then` gets the features as
    `first` returned them, with the full batch: tensors that branches share are repeated for each.
    `first` must not be a `Replay` of compact features, because `then` could not be given queries
    and keys that are replayed as probabilities.
    """

    def __init__(self, first: Taps, then: Taps):
        self.first, self.then = first, then
        if first.sites is None or then.sites is None:
            self.sites = None
        else:
            self.sites = first.sites | then.sites

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns a site's tensors, (h,) or (q, k, v), as changed by `first` and then by `then`."""
        if not calls(self.first, site):
            return self.then.feature(site, feature)
        tensors = self.first.feature(site, feature)
        if not calls(self.then, site):
            return tensors
        return self.then.feature(site, _Modified(tensors, feature))

    def output(self, site: str, y: Tensor) -> Tensor:
        """Passes the output y of an attention through `first.output`, then `then.output`.

        Each is called only if it names the site. Raises InputError if one of them returns another
        shape or dtype.
        """
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
