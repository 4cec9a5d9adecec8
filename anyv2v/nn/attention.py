"""Attention layers: projections, the site that is tapped, and a kernel."""

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
    """Attention among the tokens of each row, or from them to a context.

    `site` is this module's own path in the network: the name under which taps are called with its
    query, key and value, and its output. None: they never are.
    """

    def __init__(
        self,
        site: str | None,
        width: int,
        heads: int,
        head_dim: int,
        context_width: int | None = None,
    ):
        super().__init__()
        self.site, self.heads, self.is_cross = site, heads, context_width is not None
        inner = heads * head_dim
        self.q = Linear(width, inner, bias=False)
        self.k = Linear(context_width or width, inner, bias=False)
        self.v = Linear(context_width or width, inner, bias=False)
        self.out = Linear(inner, width)

    def forward(
        self, x: Tensor, context: tuple[Tensor, Tensor] | None = None, *, taps: Taps
    ) -> Tensor:
        """X (r, n, c) -> the same shape; `context`: what `read` made of one, with r rows."""
        feature = AttentionFeature(self, x, context)
        if not calls(taps, self.site):
            return self.attend(*feature.compute())
        return taps.output(self.site, self.attend(*taps.feature(self.site, feature)))

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of a context (r, m, c'): (r, m, heads, d) each."""
        return self._heads(self.k(context)), self.value(context)

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Query and key of x, unless the key is known: (r, n, heads, d) each."""
        return self._heads(self.q(x)), self._heads(self.k(x)) if key is None else key

    def value(self, x: Tensor) -> Tensor:
        """Values of x or of a context (r, m, c'): (r, m, heads, d)."""
        return self._heads(self.v(x))

    def attend(self, *by_and_value: Tensor) -> Tensor:
        """Output (r, n, c) of what `mix` takes; q and k of fewer rows are shared by those of v."""
        return self.out(self.mix(*by_and_value).flatten(-2))

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """The least from which `restore` makes what this layer attends by."""
        return (q, k) if self.is_cross else (x,)

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `mix` takes before the value, of query and key or of what `compact` gave."""
        return kept if len(kept) == 2 else self.project(*kept)

    @staticmethod
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class TemporalAttention(Attention):
    """Attention among the frames of each position, x (r, f, h w, c): nothing is permuted."""

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        # f numbers for each query in place of the 2 d of query and key
        return (short_probabilities(q, k),)

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return kept

    @staticmethod
    def mix(*by_and_value: Tensor) -> Tensor:
        """Of query, key and value, or of probabilities and value."""
        mix = short_attention if len(by_and_value) == 3 else apply_probabilities
        return mix(*by_and_value)


@dataclass(frozen=True)
class AttentionFeature:
    """Query, key and value of an attention, as taps are given them: a `taps.Feature`."""

    layer: Attention
    x: Tensor
    """(r, n, c), or (r, f, h w, c) along the frames."""
    context: tuple[Tensor, Tensor] | None
    """Key and value of a cross-attention's context, r rows each."""

    @property
    def batch(self) -> int:
        return len(self.x)

    @property
    def unmodified(self):
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        one = branch_size(self.x, branches)
        key = None if self.context is None else self.context[0][:one]
        return *self.layer.project(self.x[:one], key), self._value()

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        q, k, _ = tensors
        return self.layer.compact(self.x, q, k) if compact else (q, k)

    def replay(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *self.layer.restore(kept), self._value()

    def _value(self) -> Tensor:
        return self.layer.value(self.x) if self.context is None else self.context[1]
