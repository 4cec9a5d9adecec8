"""Transformer blocks on channels-last tokens, within each frame and along the frames."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.layer_norm import add_layer_norm, layer_norm
from anyv2v.nn.attention import Attention, TemporalAttention
from anyv2v.nn.linear import Linear
from anyv2v.nn.resnet import GroupNorm
from anyv2v.nn.steering import Steering, rest


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
    """The sum of a block so far and a branch of it, and that sum normalised for the next one.

    Of the rows that the branch still has.
    """

    def forward(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(rest(x, branch), branch, self.weight, self.bias, self.eps)


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
        """x (g b f, h w, c) -> the same shape, in other rows if they are spread or leave."""
        x, y = self.norm2(x, self.self(self.norm1(x), taps=taps))
        x, y = steering.spread(x), steering.spread(y)
        # the context is the same for all frames of a branch, so they are one long row of queries
        queries = rearrange(y, "(b f) n c -> b (f n) c", f=steering.frames)
        context = steering.context_of(self.cross.site, x)
        branch = self.cross(queries, context, taps=taps)
        x, y = self.norm3(x, branch.reshape(-1, *x.shape[1:]))
        return x + self.ff(y)


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
        """x (g b, f, h w, c) -> the same shape, with fewer rows if some leave."""
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
        """x (g b f, h, w, c) -> the same shape, in other rows if they are spread or leave."""
        tokens = self.proj_in(self.norm(x).flatten(1, 2))
        tokens = self.block(tokens, steering, taps=taps)
        out = self.proj_out(tokens).reshape(-1, *x.shape[1:])
        return rest(steering.spread(x), out) + out


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
        """x (g b f, h, w, c) -> the same shape, with fewer rows if some leave."""
        tokens = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames)
        tokens = self.block(self.proj_in(self.norm(tokens)), taps=taps)
        out = self.proj_out(tokens).reshape(-1, *x.shape[1:])
        return rest(x, out) + out
