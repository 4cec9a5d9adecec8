"""Attention layers: the projections, the call of the taps, and a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from anyv2v.injection.taps import Taps, branch_size, calls
from anyv2v.kernels.attention import attention
from anyv2v.kernels.short_attention import (
    apply_probabilities,
    short_attention,
    short_probabilities,
)
from anyv2v.nn.linear import Linear


class Attention(nn.Module):
    """Attention among the tokens of each batch entry, or from them to a context.

    `site` is the module's own path in the network: taps are called under that name with its query,
    key and value, and with its output. Taps are never called for an attention without a site.
    """

    def __init__(
        self,
        site: str | None,
        dim: int,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
    ):
        """Builds the projections; a cross-attention has the `context_dim` of its context."""
        super().__init__()
        self.site, self.heads, self.is_cross = site, heads, context_dim is not None
        inner_dim = heads * head_dim
        self.q = Linear(dim, inner_dim, bias=False)
        self.k = Linear(context_dim or dim, inner_dim, bias=False)
        self.v = Linear(context_dim or dim, inner_dim, bias=False)
        self.out = Linear(inner_dim, dim)

    def forward(
        self, x: Tensor, context: tuple[Tensor, Tensor] | None = None, *, taps: Taps
    ) -> Tensor:
        """Maps x (b, n, c) to the same shape.

        `context` is the key and value that `read` made of a context of b batch entries; only a
        cross-attention takes it.
        """
        feature = AttentionFeature(self, x, context)
        if self.site is None or not calls(taps, self.site):
            return self.attend(*feature.compute())
        return taps.output(self.site, self.attend(*taps.feature(self.site, feature)))

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Computes key and value of a context (b, m, c'): (b, m, heads, d) each."""
        return self._heads(self.k(context)), self.value(context)

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes query and key of x (b, n, c), (b, n, heads, d) each; a given `key` is kept."""
        return self._heads(self.q(x)), self._heads(self.k(x)) if key is None else key

    def value(self, x: Tensor) -> Tensor:
        """Computes the value of x (b, n, c) or of a context: (b, n, heads, d)."""
        return self._heads(self.v(x))

    def attend(self, *tensors: Tensor) -> Tensor:
        """Computes the layer's output (b, n, c) from the tensors that `mix` takes.

        Query and key may have fewer batch entries than the value, a divisor of their number: groups
        of values then share them.
        """
        return self.out(self.mix(*tensors).flatten(-2))

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns the smallest tensors from which `restore` can recompute query and key."""
        # q and k are linear in x: for a self-attention x is half their size
        return (q, k) if self.is_cross else (x,)

    def restore(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns what `mix` takes before the value, from `compact`'s tensors or from (q, k)."""
        return recorded if len(recorded) == 2 else self.project(*recorded)

    @staticmethod
    def mix(*tensors: Tensor) -> Tensor:
        """Computes softmax(q k / sqrt(d)) v from query, key and value (b, n, heads, d)."""
        return attention(*tensors)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class TemporalAttention(Attention):
    """Attention among the frames of each position of x (b, f, h w, c), without permuting x."""

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns the attention probabilities: f numbers per query, where q and k have 2 d."""
        return (short_probabilities(q, k),)

    def restore(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the recorded tensors, since `mix` takes probabilities as well as (q, k)."""
        return recorded

    @staticmethod
    def mix(*tensors: Tensor) -> Tensor:
        """Computes the attention from (q, k, v) or from (probabilities, v)."""
        return (short_attention if len(tensors) == 3 else apply_probabilities)(*tensors)


@dataclass(frozen=True)
class AttentionFeature:
    """Query, key and value of an attention before they are computed: a `taps.Feature`."""

    layer: Attention
    x: Tensor
    """(b, n, c), or (b, f, h w, c) for a temporal attention."""
    context: tuple[Tensor, Tensor] | None
    """Key and value of a cross-attention's context, with b batch entries each."""

    @property
    def batch(self) -> int:
        """Number of batch entries, b."""
        return len(self.x)

    @property
    def unmodified(self) -> AttentionFeature:
        """The feature as the network computes it: this one."""
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes (q, k, v); with several `branches`, q and k of the first branch alone."""
        one = branch_size(self.x, branches)
        key = None if self.context is None else self.context[0][:one]
        return *self.layer.project(self.x[:one], key), self._value()

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns what `replay` needs of (q, k, v); `compact`: in the smallest form."""
        q, k, _ = tensors
        return self.layer.compact(self.x, q, k) if compact else (q, k)

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns what `Attention.attend` takes: the recorded tensors and this pass's own value."""
        return *self.layer.restore(recorded), self._value()

    def _value(self) -> Tensor:
        return self.layer.value(self.x) if self.context is None else self.context[1]
