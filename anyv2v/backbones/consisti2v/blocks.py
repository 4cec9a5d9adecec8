"""Blocks of ConsistI2V's UNet on channels-last features (b f, h, w, c), f frames of b videos.

Unlike I2VGen-XL's, all group norms are those of single frames, and each temporal block is blended
with its input by a weight of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyv2v.backbones.consisti2v.attention import (
    ClipCrossAttention,
    FirstFrameAttention,
    FrameCrossAttention,
    NeighborAttention,
)
from anyv2v.backbones.consisti2v.config import CONV_GROUPS, UNetConfig
from anyv2v.injection.taps import Taps
from anyv2v.nn.attention import Attention
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.linear import Linear
from anyv2v.nn.resnet import Conv2d, GroupNorm
from anyv2v.nn.transformer import AddNorm, GegluFeedForward, LayerNorm


class Blend(nn.Module):
    """The blend of a temporal block with its input: alpha x + (1 - alpha) (x + h).

    alpha is learned, and clamped to [0, 1] where it is used: at 1 the block has no effect.
    """

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))

    def blend(self, x: Tensor, h: Tensor) -> Tensor:
        """Returns x + (1 - alpha) h, for the block's input x and its residual h of one shape."""
        return torch.addcmul(x, 1 - self.alpha.clamp(0, 1), h)


class TemporalConv(Blend):
    """A residual block along the frames: twice norm, SiLU and convolution, blended with the input.

    Each convolution spans three frames. The published 3D convolution with a (3, 1, 1) kernel is
    computed as a 2D one with a (3, 1) kernel over (f, h w), as in `anyv2v.nn.resnet.TemporalConv`.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = GroupNorm(CONV_GROUPS, channels, eps=1e-6)
        self.conv1 = Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.norm2 = GroupNorm(CONV_GROUPS, channels, eps=1e-6)
        self.conv2 = Conv2d(channels, channels, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f = `frames` frames to the same shape."""
        h, bias = self.conv1.before_bias(_by_frame(self.norm1(x, silu=True), frames))
        # the norm adds the bias
        shift = None if bias is None else bias[None]
        h = self.norm2(h.reshape(x.shape), silu=True, shift=shift)
        return self.blend(x, self.conv2(_by_frame(h, frames)).reshape(x.shape))


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention, feed-forward."""

    def __init__(self, dim: int, self_attention: Attention, cross_attention: Attention):
        """Builds the block from its attentions, whose input is (b, f, h, w, c) with c = `dim`.

        The attentions may return the same values in another shape.
        """
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.self = self_attention
        self.norm2 = AddNorm(dim)
        self.cross = cross_attention
        self.norm3 = AddNorm(dim)
        self.ff = GegluFeedForward(dim)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps x (b, f, h, w, c), b videos with f frames, to the same shape.

        ctx: holds the context that the cross-attention reads. taps: the hooks that the attentions
        call.
        """
        assert self.cross.site is not None, "the context is found by the attention's site"
        context = ctx.context[self.cross.site]
        x, normed = self.norm2(x, self.self(self.norm1(x), taps=taps).reshape(x.shape))
        x, normed = self.norm3(x, self.cross(normed, context, taps=taps).reshape(x.shape))
        return x + self.ff(normed)


class SpatialTransformer(nn.Module):
    """Norm, projection, a `Block` within each frame and with the first one, projection; + input.

    `site` is the module's path in the network. The attentions call taps under the names
    `site.block.self` and `site.block.cross`.
    """

    def __init__(self, site: str, channels: int, heads: int, config: UNetConfig):
        super().__init__()
        head_dim = channels // heads
        self.norm = GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.block = Block(
            channels,
            FirstFrameAttention(f"{site}.block.self", channels, heads, head_dim),
            ClipCrossAttention(
                f"{site}.block.cross", channels, heads, head_dim, config.context_dim
            ),
        )
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the block reads. taps: the hooks that its attentions call.
        """
        tokens = self.proj_in(self.norm(x)).unflatten(0, (-1, ctx.frames))
        return x + self.proj_out(self.block(tokens, ctx, taps=taps)).reshape(x.shape)


class TemporalTransformer(Blend):
    """Norm, projection, a `Block` along the frames, projection; + input, blended with the input.

    `site` is the module's path in the network. The attentions call taps under the names
    `site.block.self` and `site.block.cross`.
    """

    def __init__(self, site: str, channels: int, config: UNetConfig):
        super().__init__()
        heads = config.temporal_heads
        self.norm = GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.block = Block(
            channels,
            NeighborAttention(f"{site}.block.self", channels, heads),
            FrameCrossAttention(f"{site}.block.cross", channels, heads, config.context_dim),
        )
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the block reads. taps: the hooks that its attentions call.
        """
        tokens = self.proj_in(self.norm(x)).unflatten(0, (-1, ctx.frames))
        h = self.proj_out(self.block(tokens, ctx, taps=taps)).reshape(x.shape)
        return self.blend(x, h)


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """Returns features (b f, h, w, c) as (b, f, h w, c), for a convolution over (f, h w)."""
    return x.unflatten(0, (-1, frames)).flatten(2, 3)
