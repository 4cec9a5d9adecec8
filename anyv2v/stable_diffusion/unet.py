"""Stable Diffusion's UNet (arXiv 2112.10752) for images.

Inside the network, features are channels-last, (b, h, w, c). Besides a text, the network may be
conditioned on an image, as a second context of the cross-attentions (IP-Adapter, arXiv 2308.06721),
and on features that are added on the way down (T2I-Adapter, arXiv 2302.08453).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS
from anyv2v.nn.attention import Attention
from anyv2v.nn.embeddings import mlp, sinusoids
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.levels import layer_inputs
from anyv2v.nn.linear import Linear
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock
from anyv2v.nn.transformer import AddNorm, GegluFeedForward
from anyv2v.stable_diffusion.config import UNet2DConfig

Context = Mapping[str, tuple[Tensor, Tensor]]
"""Site (path in the network) of a cross-attention -> key and value of the text's n tokens there,
(b, n, heads, d) each."""

ImageContext = Mapping[str, tuple[Tensor, Tensor, float]]
"""Site (path in the network) of a cross-attention -> key and value of an image's m tokens there,
(b, m, heads, d) each, and the weight with which attention to the image is added."""


@dataclass(frozen=True)
class ForwardContext2D(ForwardContext):
    """The inputs that all blocks share in one forward pass, with an image as a second context."""

    image: ImageContext = field(default_factory=dict)
    """The image's keys and values, for the cross-attentions that read it; empty for no image."""


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention to text and image, feed-forward.

    `site` is the block's path in the network; its cross-attention is called `site.cross`.
    """

    def __init__(self, site: str, dim: int, config: UNet2DConfig):
        super().__init__()
        heads, head_dim = config.heads, dim // config.heads
        self.cross_site = f"{site}.cross"
        self.norm1 = nn.LayerNorm(dim)
        self.self = Attention(f"{site}.self", dim, heads, head_dim)
        self.norm2 = AddNorm(dim)
        self.cross = Attention(self.cross_site, dim, heads, head_dim, config.context_dim)
        self.norm3 = AddNorm(dim)
        self.ff = GegluFeedForward(dim)

    def forward(self, x: Tensor, ctx: ForwardContext2D) -> Tensor:
        """Maps tokens x (b, h w, c) to the same shape; ctx holds the keys and values to read."""
        x, normed = self.norm2(x, self.self(self.norm1(x), taps=NO_TAPS))
        x, normed = self.norm3(x, self._cross_attend(normed, ctx))
        return x + self.ff(normed)

    def _cross_attend(self, x: Tensor, ctx: ForwardContext2D) -> Tensor:
        # the same queries attend to the text and to the image (arXiv 2308.06721, eq. 5)
        key, value = ctx.context[self.cross_site]
        query, _ = self.cross.project(x, key)
        mixed = self.cross.mix(query, key, value)
        if self.cross_site in ctx.image:
            key, value, scale = ctx.image[self.cross_site]
            mixed = mixed + scale * self.cross.mix(query, key, value)
        return self.cross.out(mixed.flatten(-2))


class Transformer(nn.Module):
    """Norm, projection, `Block` on the h w tokens of an image, projection; + input.

    `site` is the module's path in the network.
    """

    def __init__(self, site: str, channels: int, config: UNet2DConfig):
        super().__init__()
        self.norm = GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.block = Block(f"{site}.block", channels, config)
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, ctx: ForwardContext2D) -> Tensor:
        """Maps features x (b, h, w, c) to the same shape; ctx holds the keys and values to read."""
        tokens = self.proj_in(self.norm(x).flatten(1, 2))
        return x + self.proj_out(self.block(tokens, ctx)).reshape(x.shape)


class Level(nn.Module):
    """The layers of a UNet at one resolution.

    Layer i is res[i] (a resnet) and, if the level attends, spatial[i] (a transformer).
    """

    def __init__(
        self, name: str, in_channels: list[int], channels: int, attends: bool, config: UNet2DConfig
    ):
        """Builds the level with one layer per entry of `in_channels`.

        name: path of the level in the network, such as "up.1". in_channels: input channels of each
        layer. channels: output channels of every layer. attends: whether the layers have
        transformers.
        """
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(
                f"{name}.res.{i}",
                layer_channels,
                channels,
                groups=config.groups,
                eps=1e-5,
                time_dim=config.time_dim,
            )
            for i, layer_channels in enumerate(in_channels)
        )
        self.spatial = nn.ModuleList(
            Transformer(f"{name}.spatial.{i}", channels, config)
            for i in range(len(in_channels) if attends else 0)
        )

    def layer(self, i: int, x: Tensor, ctx: ForwardContext2D) -> Tensor:
        """Runs layer i on features x (b, h, w, c) and returns its output (b, h, w, c')."""
        x = self.res[i](x, ctx.time_embedding, taps=NO_TAPS)
        return self.spatial[i](x, ctx) if self.spatial else x


class DownLevel(Level):
    """A level on the way down, which ends with a downsampler unless it is the `last`."""

    def __init__(self, name, in_channels, channels, attends, config, *, last: bool):
        super().__init__(name, in_channels, channels, attends, config)
        self.downsample = None if last else Downsample(channels)

    def forward(
        self, x: Tensor, ctx: ForwardContext2D, residual: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the outputs of all layers, then that of the downsampler.

        x (b, h, w, c): input of the first layer. residual: tensor (b, h, w, c') to add to the
        output of the last layer; None adds nothing. The outputs are the skip features for the way
        up; the last output is also the input of the next level.
        """
        outs = []
        for i in range(len(self.res)):
            x = self.layer(i, x, ctx)
            outs.append(x)
        if residual is not None:
            outs[-1] = outs[-1] + residual
        if self.downsample is not None:
            outs.append(self.downsample(outs[-1]))
        return outs


class MidLevel(Level):
    """The level between down and up levels: two layers, the second of which has no transformer."""

    def __init__(self, name: str, channels: int, config: UNet2DConfig):
        super().__init__(name, [channels, channels], channels, True, config)
        del self.spatial[1:]

    def forward(self, x: Tensor, ctx: ForwardContext2D) -> Tensor:
        """Maps features x (b, h, w, c) to the same shape."""
        x = self.layer(0, x, ctx)
        return self.res[1](x, ctx.time_embedding, taps=NO_TAPS)


class UpLevel(Level):
    """A level on the way up, which ends with an upsampler unless it is the `last`."""

    def __init__(self, name, in_channels, channels, attends, config, *, last: bool):
        super().__init__(name, in_channels, channels, attends, config)
        self.upsample = None if last else Upsample(channels)

    def forward(self, x: Tensor, skips: list[Tensor], ctx: ForwardContext2D) -> Tensor:
        """Maps features x (b, h, w, c) to the input (b, h', w', c') of the next level.

        Every layer takes one skip feature off the end of the list `skips`, which is modified.
        """
        for i in range(len(self.res)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=-1), ctx)
        if self.upsample is None:
            return x
        # the size of the next skip: not always double, since odd sizes were rounded up going down
        return self.upsample(x, skips[-1].shape[1:3])


class UNet2D(nn.Module):
    """Stable Diffusion's UNet, which predicts the noise in latents from the timestep and a text."""

    def __init__(self, config: UNet2DConfig):
        super().__init__()
        self.config = config
        channels, deepest = config.level_channels, len(config.level_channels) - 1
        self.time_embedding = mlp(channels[0], config.time_dim)
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)

        levels = list(zip(channels, config.attention, strict=True))
        down_inputs, up_inputs = layer_inputs(channels, config.layers)
        self.down = nn.ModuleList(
            DownLevel(f"down.{i}", down_inputs[i], *level, config, last=i == deepest)
            for i, level in enumerate(levels)
        )
        self.mid = MidLevel("mid", channels[-1], config)
        self.up = nn.ModuleList(
            UpLevel(f"up.{i}", up_inputs[i], *level, config, last=i == deepest)
            for i, level in enumerate(reversed(levels))
        )

        self.norm_out = GroupNorm(config.groups, channels[0], eps=1e-5)
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)

    def read(self, text: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Computes the keys and values of b encoded texts (b, n, c') at every cross-attention.

        Returns site (path of the attention in the network) -> key and value, (b, n, heads, d) each.
        These do not depend on the timestep, so that a run computes them only once.
        """
        return {site: m.read(text) for site, m in _cross_attentions(self)}

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        context: Context,
        image: ImageContext | None = None,
        residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predicts the noise (b, out_channels, h, w) in latents (b, in_channels, h, w).

        Latents and result have the network's dtype. t (b,): timesteps, in any number type. context:
        the result of `read` for b texts. image: key and value of b images, and the weight of
        attention to them, at some of the cross-attentions in `context` (see
        `ip_adapter.image_context`); None for no images. residuals: features to add on the way down,
        one (b, h', w', c') for each of the first levels, added to the output of the level's last
        layer and of the same shape. Raises InputError if there are more residuals than levels.
        """
        if len(residuals) > len(self.down):
            raise InputError(f"{len(residuals)} residuals are given for {len(self.down)} levels")
        time_embedding = sinusoids(t, self.config.level_channels[0]).to(latents.dtype)
        ctx = ForwardContext2D(self.time_embedding(time_embedding), context, image=image or {})
        # contiguous, so that the strides of the caller's latents do not change the result's bits
        x = self.conv_in(rearrange(latents, "b c h w -> b h w c").contiguous())

        skips = [x]
        for i, level in enumerate(self.down):
            skips += level(skips[-1], ctx, residuals[i] if i < len(residuals) else None)
        x = self.mid(skips[-1], ctx)
        for level in self.up:
            x = level(x, skips, ctx)

        x = self.conv_out(self.norm_out(x, silu=True))
        return rearrange(x, "b h w c -> b c h w").contiguous()


def cross_sites(unet: UNet2D) -> tuple[str, ...]:
    """Returns the sites (paths in the UNet) of all cross-attentions, in the order of `forward`."""
    return tuple(site for site, _ in _cross_attentions(unet))


def _cross_attentions(unet: UNet2D) -> list[tuple[str, Attention]]:
    named = unet.named_modules()
    return [(path, m) for path, m in named if isinstance(m, Attention) and m.is_cross]
