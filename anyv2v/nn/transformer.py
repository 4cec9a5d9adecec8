"""Transformer blocks on channels-last tokens, within each frame and along the frames."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.layer_norm import add_layer_norm, layer_norm
from anyv2v.nn.attention import Attention, TemporalAttention
from anyv2v.nn.forward_context import Steering
from anyv2v.nn.linear import Linear
from anyv2v.nn.resnet import GroupNorm


class GegluFeedForward(nn.Module):
    """value * GELU(gate), both projections of x, and back (arXiv 2002.05202); exact GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.up = Linear(width, 8 * width)
        self.down = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # self.up only holds the weights: its own forward is never called
        return self.down(geglu(x, self.up.weight, self.up.bias))


class LayerNorm(nn.LayerNorm):
    """Layer normalization by the kernels of this project."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class AddNorm(nn.LayerNorm):
    """The sum of a block so far and a branch of it, and that sum normalised for the next one."""

    def forward(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(x, branch, self.weight, self.bias, self.eps)


class SpatialBlock(nn.Module):
    """Self-attention within a frame, cross-attention to the context, feed-forward."""

    def __init__(self, site: str, width: int, heads: int, head_dim: int, context_width: int):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.self = Attention(f"{site}.self", width, heads, head_dim)
        self.norm2 = AddNorm(width)
        self.cross = Attention(f"{site}.cross", width, heads, head_dim, context_width)
        self.norm3 = AddNorm(width)
        self.ff = GegluFeedForward(width)

    def forward(self, x: Tensor, steering: Steering, *, taps: Taps) -> Tensor:
        """X (g b f, h w, c) -> the same shape."""
        return self.after_self(*self.until_self(x, taps=taps), steering, taps=taps)

    def until_self(self, x: Tensor, *, taps: Taps) -> tuple[Tensor, Tensor]:
        """The part that depends on neither time nor context: the sum so far, and its norm."""
        return self.norm2(x, self.self(self.norm1(x), taps=taps))

    def after_self(self, x: Tensor, y: Tensor, steering: Steering, *, taps: Taps) -> Tensor:
        """The rest, of the two that `until_self` gave."""
        x, y = self.norm3(x, self._of_context(y, steering, taps=taps))
        return x + self.ff(y)

    def _of_context(self, y: Tensor, steering: Steering, *, taps: Taps) -> Tensor:
        """What the tokens y (g b f, h w, c) take from the context: the same shape."""
        # the context is the same for all frames of a branch, so they are one long row of queries
        queries = rearrange(y, "(b f) n c -> b (f n) c", f=steering.frames)
        context = steering.context[self.cross.site]
        return self.cross(queries, context, taps=taps).reshape(y.shape)


class TemporalBlock(nn.Module):
    """Two self-attentions along the frames and a feed-forward."""

    def __init__(self, site: str, width: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.self = TemporalAttention(f"{site}.self", width, heads, head_dim)
        self.norm2 = AddNorm(width)
        self.self2 = TemporalAttention(f"{site}.self2", width, heads, head_dim)
        self.norm3 = AddNorm(width)
        self.ff = GegluFeedForward(width)

    def forward(self, x: Tensor, *, taps: Taps) -> Tensor:
        """X (g b, f, h w, c) -> the same shape."""
        x, y = self.norm2(x, self.self(self.norm1(x), taps=taps))
        x, y = self.norm3(x, self.self2(y, taps=taps))
        return x + self.ff(y)


class SpatialTransformer(nn.Module):
    """Norm per frame, projection, block over the h w tokens of a frame, projection; + input."""

    def __init__(
        self, site: str, width: int, *, heads: int, head_dim: int, context_width: int, groups: int
    ):
        super().__init__()
        inner = heads * head_dim
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, inner)
        self.block = SpatialBlock(f"{site}.block", inner, heads, head_dim, context_width)
        self.proj_out = Linear(inner, width)

    def forward(self, x: Tensor, steering: Steering, *, taps: Taps) -> Tensor:
        """X (g b f, h, w, c) -> the same shape."""
        return self.add_to(x, self.block(self.tokens(x), steering, taps=taps))

    def tokens(self, x: Tensor) -> Tensor:
        """What the block is given: (g b f, h w, c')."""
        return self.proj_in(self.norm(x).flatten(1, 2))

    def add_to(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The input, and what the block made of its tokens."""
        return x + self.proj_out(tokens).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """Norm over all frames, projection, block over the f tokens of a place, projection; + input.

    There is no encoding of the frame's position.
    """

    def __init__(self, site: str, width: int, *, heads: int, head_dim: int, groups: int):
        super().__init__()
        inner = heads * head_dim
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, inner)
        self.block = TemporalBlock(f"{site}.block", inner, heads, head_dim)
        self.proj_out = Linear(inner, width)

    def forward(self, x: Tensor, frames: int, *, taps: Taps) -> Tensor:
        """X (g b f, h, w, c) -> the same shape."""
        tokens = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames)
        tokens = self.block(self.proj_in(self.norm(tokens)), taps=taps)
        return x + self.proj_out(tokens).reshape(x.shape)
