"""Attention layers: projections, the site that is tapped, and a kernel."""

from __future__ import annotations

from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.attention import attention
from anyv2v.kernels.short_attention import short_attention
from anyv2v.nn.linear import Linear


class Attention(nn.Module):
    """Attention among the tokens of each row, or from them to a context.

    `site` is this module's own path in the network: the name under which taps are shown its
    query and key. None: they are not shown.
    """

    mix = staticmethod(attention)

    def __init__(
        self,
        site: str | None,
        width: int,
        heads: int,
        head_dim: int,
        context_width: int | None = None,
    ):
        super().__init__()
        self.site, self.heads = site, heads
        inner = heads * head_dim
        self.q = Linear(width, inner, bias=False)
        self.k = Linear(context_width or width, inner, bias=False)
        self.v = Linear(context_width or width, inner, bias=False)
        self.out = Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None, *, taps: Taps) -> Tensor:
        """x (r, n, c), context (r, m, c') -> (r, n, c)."""
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)) for y in (self.q(x), self.k(context), self.v(context))
        )
        if self.site is not None:
            q, k = taps.qk(self.site, q, k)
        return self.out(self.mix(q, k, v).flatten(-2))


class TemporalAttention(Attention):
    """Attention among the frames of each position, x (r, f, h w, c): nothing is permuted."""

    mix = staticmethod(short_attention)
