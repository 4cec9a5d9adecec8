"""Attention layers: projections, the site that is tapped, and a kernel."""

from __future__ import annotations

from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.attention import attention
from anyv2v.kernels.short_attention import (
    apply_probabilities,
    short_attention,
    short_probabilities,
)
from anyv2v.nn.linear import Linear


class Attention(nn.Module):
    """Attention among the tokens of each row, or from them to a context.

    `site` is this module's own path in the network: the name under which taps are asked for its
    query and key. None: they are shown none.
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
        """x (r, n, c) -> the same shape, or fewer rows where taps let the first of them leave.

        `context`: what `read` made of one, with r rows.
        """
        key, value = context or (None, None)
        by = taps.project(self.site, self, x, key)
        x = taps.leaving(self.site, x)
        value = self._heads(self.v(x)) if context is None else taps.leaving(self.site, value)
        return self.out(self.mix(*by, value).flatten(-2))

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of a context (r, m, c'): (r, m, heads, d) each."""
        return self._heads(self.k(context)), self._heads(self.v(context))

    def project(self, x: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Query and key of x, unless the key is known: (r, n, heads, d) each."""
        return self._heads(self.q(x)), self._heads(self.k(x)) if key is None else key

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """The least from which `restore` makes what this layer attends by."""
        return (q, k) if self.is_cross else (x,)

    def restore(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
