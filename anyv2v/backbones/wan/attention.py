"""The attentions of Wan's transformer: among all tokens of a clip, and to the text.

Their input is (b, f, h, w, c): the tokens of f frames, h rows and w columns of each of b clips. The
output is (b, f h w, c). Queries and keys are normalized over all heads together.
"""

from __future__ import annotations

from torch import Tensor

from anyv2v.backbones.wan.layers import RMSNorm
from anyv2v.backbones.wan.rotary import rotate, rotations
from anyv2v.nn.attention import Attention


class NormedAttention(Attention):
    """An attention with biases, whose queries and keys are normalized before they become heads."""

    def __init__(self, site: str, dim: int, heads: int, eps: float, context_dim: int | None = None):
        """Builds the attention; see `Attention`. eps: what the norms add to the mean square."""
        super().__init__(site, dim, heads, dim // heads, context_dim, bias=True)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)


class SelfAttention(NormedAttention):
    """Self-attention among all tokens of a clip, with rotary position embedding.

    Taps (hooks) see query and key as they are multiplied: normalized and rotated.
    """

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
