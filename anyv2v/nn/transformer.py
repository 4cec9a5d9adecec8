"""Transformers on channels-last features, within each frame and along the frames.

Features are (b f, h, w, c): f frames of each of b videos. Blocks see the features as tokens, of the
shape (b f, h w, c) within a frame and (b, f, h w, c) along the frames.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.layer_norm import add_layer_norm, layer_norm
from anyv2v.nn.attention import Attention, TemporalAttention
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.linear import Linear
from anyv2v.nn.resnet import GroupNorm


class GegluFeedForward(nn.Module):
    """A GEGLU feed-forward network (arXiv 2002.05202): down(value * GELU(gate)), GELU exact.

    The linear layer `up` computes value and gate together, which have 4 dim channels each; the
    linear layer `down` maps back to `dim` channels.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.up = Linear(dim, 8 * dim)
        self.down = Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) to the same shape."""
        # the kernel takes the weights of self.up, whose own forward is never called
        return self.down(geglu(x, self.up.weight, self.up.bias))


class LayerNorm(nn.LayerNorm):
    """Layer normalization computed by a kernel of this project, see `anyv2v.kernels.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes the input (..., c) over its last dim, keeping the shape."""
        return layer_norm(input, self.weight, self.bias, self.eps)


class AddNorm(nn.Module):
    """A residual sum and its layer normalization, computed together by one kernel."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x + residual and LayerNorm(x + residual); all tensors are (..., c)."""
        return add_layer_norm(x, residual, self.weight, self.bias, self.eps)


class SpatialBlock(nn.Module):
    """A transformer block within frames: self-attention, cross-attention, feed-forward.

    `site` is the block's path in the network. Its attentions call taps under the names `site.self`
    and `site.cross`.
    """

    def __init__(self, site: str, dim: int, heads: int, head_dim: int, context_dim: int):
        super().__init__()
        self.cross_site = f"{site}.cross"
        self.norm1 = LayerNorm(dim)
        self.self = Attention(f"{site}.self", dim, heads, head_dim)
        self.norm2 = AddNorm(dim)
        self.cross = Attention(self.cross_site, dim, heads, head_dim, context_dim)
        self.norm3 = AddNorm(dim)
        self.ff = GegluFeedForward(dim)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps tokens x (b f, h w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the cross-attention reads. taps: the hooks that the attentions
        call.
        """
        return self.after_self(*self.until_self(x, taps=taps), ctx, taps=taps)

    def until_self(self, x: Tensor, *, taps: Taps) -> tuple[Tensor, Tensor]:
        """Runs the first part of the block, the self-attention, on tokens x (b f, h w, c).

        Returns the residual sum and its normalization, of the same shape, which `after_self` takes.
        """
        return self.norm2(x, self.self(self.norm1(x), taps=taps))

    def after_self(self, x: Tensor, normed: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs the rest of the block, cross-attention and feed-forward, and returns its output.

        x, normed: the two tensors that `until_self` returned, (b f, h w, c) like the output.
        """
        x, normed = self.norm3(x, self._cross_attend(normed, ctx, taps=taps))
        return x + self.ff(normed)

    def _cross_attend(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        # all frames of a video read the same context: one sequence of f h w queries per video
        queries = rearrange(x, "(b f) n c -> b (f n) c", f=ctx.frames)
        context = ctx.context[self.cross_site]
        return self.cross(queries, context, taps=taps).reshape(x.shape)


class TemporalBlock(nn.Module):
    """A transformer block along the frames: two self-attentions and a feed-forward.

    `site` is the block's path in the network. Its attentions call taps under the names `site.self`
    and `site.self2`.
    """

    def __init__(self, site: str, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.self = TemporalAttention(f"{site}.self", dim, heads, head_dim)
        self.norm2 = AddNorm(dim)
        self.self2 = TemporalAttention(f"{site}.self2", dim, heads, head_dim)
        self.norm3 = AddNorm(dim)
        self.ff = GegluFeedForward(dim)

    def forward(self, x: Tensor, *, taps: Taps) -> Tensor:
        """Maps tokens x (b, f, h w, c) of b videos with f frames to the same shape.

        taps: the hooks that the attentions call.
        """
        x, normed = self.norm2(x, self.self(self.norm1(x), taps=taps))
        x, normed = self.norm3(x, self.self2(normed, taps=taps))
        return x + self.ff(normed)


class SpatialTransformer(nn.Module):
    """Norm, projection, `SpatialBlock` on the h w tokens of each frame, projection; + input.

    Statistics of the norm are those of single frames. `site`: the module's path in the network.
    """

    def __init__(
        self, site: str, channels: int, *, heads: int, head_dim: int, context_dim: int, groups: int
    ):
        super().__init__()
        dim = heads * head_dim
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, dim)
        self.block = SpatialBlock(f"{site}.block", dim, heads, head_dim, context_dim)
        self.proj_out = Linear(dim, channels)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the block reads. taps: the hooks that its attentions call.
        """
        return self.add_to(x, self.block(self.tokens(x), ctx, taps=taps))

    def tokens(self, x: Tensor) -> Tensor:
        """Normalizes and projects features x (b f, h, w, c) to the block's input (b f, h w, c')."""
        return self.proj_in(self.norm(x).flatten(1, 2))

    def add_to(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Projects the block's output (b f, h w, c') back and adds it to x (b f, h, w, c)."""
        return x + self.proj_out(tokens).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """Norm, projection, `TemporalBlock` on the f tokens of each position, projection; + input.

    Statistics of the norm span all frames of a video. `site`: the module's path in the network. As
    in the original code, there is no encoding of a frame's position in the video.
    """

    def __init__(self, site: str, channels: int, *, heads: int, head_dim: int, groups: int):
        super().__init__()
        dim = heads * head_dim
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, dim)
        self.block = TemporalBlock(f"{site}.block", dim, heads, head_dim)
        self.proj_out = Linear(dim, channels)

    def forward(self, x: Tensor, frames: int, *, taps: Taps) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f = `frames` frames to the same shape.

        taps: the hooks that the block's attentions call.
        """
        tokens = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames)
        tokens = self.block(self.proj_in(self.norm(tokens)), taps=taps)
        return x + self.proj_out(tokens).reshape(x.shape)
