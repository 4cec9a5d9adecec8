"""The attentions of Wan's transformer: among all tokens of a clip, and to the text.

Their input is (b, f, h, w, c): the tokens of f frames, h rows and w columns of each of b clips. The
output is (b, f h w, c). Queries and keys are normalized over all heads together.

The features here are those of `anyv2v.injection.taps`: they compute what taps (hooks) ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyv2v.backbones.wan.layers import RMSNorm, TokenFeature, with_own_first
from anyv2v.backbones.wan.rotary import rotate, rotations
from anyv2v.backbones.wan.sites import CONTEXT, VALUE
from anyv2v.injection.taps import NO_TAPS, Taps, branch_size, calls, repeat_to_batch
from anyv2v.nn.attention import Attention, AttentionFeature


class NormedAttention(Attention):
    """An attention with biases, whose queries and keys are normalized before they become heads."""

    def __init__(self, site: str, dim: int, heads: int, eps: float, context_dim: int | None = None):
        """Builds the attention; see `Attention`. eps: what the norms add to the mean square."""
        super().__init__(site, dim, heads, dim // heads, context_dim, bias=True)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)


class SelfAttention(NormedAttention):
    """Self-attention among all tokens of a clip, with rotary position embedding.

    Taps (hooks) are called at three sites: at `site` with query, key and value, where query and key
    are as they are multiplied, normalized and rotated; at `value_site` with the value alone; and at
    `context_site` with the result before the output projection, (b, f h w, heads, d) like them.
    """

    def __init__(self, site: str, dim: int, heads: int, eps: float):
        super().__init__(site, dim, heads, eps)
        self.value_site, self.context_site = f"{site}.{VALUE}", f"{site}.{CONTEXT}"

    def forward(
        self,
        x: Tensor,
        context: tuple[Tensor, Tensor] | None = None,
        *,
        taps: Taps,
        without_first: frozenset[str] = frozenset(),
    ) -> Tensor:
        """Maps x (b, f, h, w, c) to tokens (b, f h w, c).

        context: None, because this is a self-attention. taps: the hooks to call at the sites.
        without_first: the kinds of sites of which frame 0 is left out, see `Conditions`.
        """
        assert self.site is not None, "its place in the network"
        feature = MapFeature(self, x, None, taps, without_first)
        at_map = calls(taps, self.site)
        tensors = taps.feature(self.site, feature) if at_map else feature.compute()
        if calls(taps, self.context_site):
            mixed = ContextFeature(self, x, tensors, CONTEXT in without_first)
            (y,) = taps.feature(self.context_site, mixed)
            y = repeat_to_batch(y, len(x))
        else:
            y = self.mix(*tensors)
        y = self.out(y.flatten(-2))
        return taps.output(self.site, y) if at_map else y

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes query and key of x (b, f, h, w, c), (b, f h w, heads, d) each.

        Norm and rotation are computed in float32, and rounded once. key: None, because this is a
        self-attention.
        """
        # made anew in every layer: it is nothing beside the products, and nobody has to keep it
        by = rotations(x.shape[1:4], x.shape[-1] // self.heads, x.device)
        query = rotate(self._heads(self.norm_q(self.q(x))), by).to(x.dtype)
        key = rotate(self._heads(self.norm_k(self.k(x))), by).to(x.dtype)
        return query.flatten(1, 3), key.flatten(1, 3)

    def value(self, x: Tensor) -> Tensor:
        """Computes the value (b, f h w, heads, d) of x (b, f, h, w, c)."""
        return super().value(x).flatten(1, 3)


class CrossAttention(NormedAttention):
    """Attention of all tokens of a clip to the text. Taps (hooks) see normalized query and key."""

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Computes key and value of a text (b, m, c), (b, m, heads, d) each."""
        key = self.norm_k(self.k(context)).to(context.dtype)
        return self._heads(key), self.value(context)

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the query (b, f h w, heads, d) of x (b, f, h, w, c), and returns `key` too."""
        assert key is not None, "the key is the text's"
        query = self.norm_q(self.q(x)).to(x.dtype)
        return self._heads(query).flatten(1, 3), key


@dataclass(frozen=True)
class MapFeature(AttentionFeature):
    """Query, key and value of a `SelfAttention`: query and key make its attention map."""

    layer: SelfAttention
    """The attention whose query, key and value these are."""
    taps: Taps
    """The hooks to call at the value's site."""
    without_first: frozenset[str]
    """The kinds of sites of which frame 0 is left out, see `Conditions`."""

    @property
    def unmodified(self) -> MapFeature:
        """The feature before any taps changed it or its value."""
        return replace(self, taps=NO_TAPS)

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes (q, k, v).

        branches: number of branches that the batch consists of. With more than one, query and key
        are computed for the first branch alone, or with their own frame 0 for every branch; and the
        value for all. Raises ValueError if the batch is not a multiple of `branches`.
        """
        query, key = self.layer.project(self.x[: branch_size(self.x, branches)])
        return *(self._with_own_first(query, key) if branches > 1 else (query, key)), self._value()

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns (q, k, v), with query and key `recorded` by `record`, perhaps in another pass."""
        query, key = self.layer.restore(recorded)
        return *self._with_own_first(query, key), self._value()

    def _with_own_first(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The source's query and key, with each branch's own of frame 0 if they are left out."""
        if "map" not in self.without_first:
            return query, key
        # the first frame's positions are the same without the other frames
        own_query, own_key = self.layer.project(self.x[:, :1])
        return with_own_first(own_query, query), with_own_first(own_key, key)

    def _value(self) -> Tensor:
        if not calls(self.taps, self.layer.value_site):
            return self.layer.value(self.x)
        feature = TokenFeature(self.layer.value, self.x, VALUE in self.without_first)
        (value,) = self.taps.feature(self.layer.value_site, feature)
        return repeat_to_batch(value, len(self.x))


@dataclass(frozen=True)
class ContextFeature:
    """The result of a `SelfAttention`, in which an edit may attend to the source's tokens, too.

    It implements `Feature` of the taps. Where it is injected, the source's keys and values are
    concatenated to those of every other branch, whose queries attend to both. The source's own
    result stays as it is.
    """

    layer: SelfAttention
    """The attention whose result this is."""
    x: Tensor
    """(b, f, h, w, c): its input."""
    tensors: tuple[Tensor, ...]
    """Query, key and value of the branches, (b, f h w, heads, d); query and key may be shared."""
    own_first: bool
    """Whether the source's tokens of frame 0 are left out."""

    @property
    def batch(self) -> int:
        """Number of clips in the batch, b."""
        return len(self.x)

    @property
    def unmodified(self) -> ContextFeature:
        """The feature with the network's own query, key and value."""
        return replace(self, tensors=(*self.layer.project(self.x), self.layer.value(self.x)))

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes a tuple of one tensor, the result (b, f h w, heads, d).

        branches: number of branches that the batch consists of. With more than one, all but the
        first attend to the first one's tokens, too.
        """
        if branches == 1:
            return (self.layer.mix(*self.tensors),)
        n = branch_size(self.x, branches)
        # what branches share is the source's, and theirs
        source = tuple(x[:n] for x in self.tensors)
        others = tuple(x[n:] if len(x) > n else x for x in self.tensors)
        return (torch.cat([self.layer.mix(*source), self._beside(source[1:], others)]),)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns key and value, or if `compact` the input, from which both can be computed."""
        return (self.x,) if compact else self.tensors[1:]

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the result of branches that attend to the `recorded` tokens, too."""
        if len(recorded) == 1:
            recorded = self.layer.project(*recorded)[1], self.layer.value(*recorded)
        return (self._beside(recorded, self.tensors),)

    def _beside(self, source: tuple[Tensor, ...], own: tuple[Tensor, ...]) -> Tensor:
        query, *others = own
        skipped = self.x.shape[2] * self.x.shape[3] if self.own_first else 0
        key, value = (
            torch.cat([repeat_to_batch(a[:, skipped:], len(b)), b], dim=1)
            for a, b in zip(source, others, strict=True)
        )
        return self.layer.mix(query, key, value)
