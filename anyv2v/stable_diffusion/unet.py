"""Stable Diffusion's UNet (arXiv 2112.10752): the spatial half of the 3D one, for pictures.

Channels-last tokens inside, (b, h, w, c). Two things may steer it besides text: keys and values of
a picture beside those of the text (IP-Adapter, arXiv 2308.06721), and features added on the way
down (T2I-Adapter, arXiv 2302.08453).
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
from anyv2v.nn.linear import Linear
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock
from anyv2v.nn.transformer import AddNorm, GegluFeedForward
from anyv2v.stable_diffusion.config import UNet2DConfig

Context = Mapping[str, tuple[Tensor, Tensor]]
"""Site of a cross-attention -> key and value of the text, (b, n, heads, d) each."""

ImageContext = Mapping[str, tuple[Tensor, Tensor, float]]
"""Site of a cross-attention -> key and value of a picture, and how much it counts."""


@dataclass(frozen=True)
class Told:
    """What all blocks are told at one timestep."""

    time: Tensor
    """(b, t)."""
    context: Context
    image: ImageContext = field(default_factory=dict)


class Block(nn.Module):
    """Self-attention, cross-attention to text and maybe a picture, feed-forward."""

    def __init__(self, site: str, width: int, config: UNet2DConfig):
        super().__init__()
        heads, head_dim = config.heads, width // config.heads
        self.norm1 = nn.LayerNorm(width)
        self.self = Attention(f"{site}.self", width, heads, head_dim)
        self.norm2 = AddNorm(width)
        self.cross = Attention(f"{site}.cross", width, heads, head_dim, config.context_width)
        self.norm3 = AddNorm(width)
        self.ff = GegluFeedForward(width)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        """X (b, h w, c) -> the same shape."""
        x, y = self.norm2(x, self.self(self.norm1(x), taps=NO_TAPS))
        x, y = self.norm3(x, self._attend(y, told))
        return x + self.ff(y)

    def _attend(self, x: Tensor, told: Told) -> Tensor:
        """To the text, and with the same queries to the picture (arXiv 2308.06721, eq. 5)."""
        cross = self.cross
        key, value = told.context[cross.site]
        query, _ = cross.project(x, key)
        mixed = cross.mix(query, key, value)
        if cross.site in told.image:
            key, value, scale = told.image[cross.site]
            mixed = mixed + scale * cross.mix(query, key, value)
        return cross.out(mixed.flatten(-2))


class Transformer(nn.Module):
    """Norm, projection, block over the h w tokens of a picture, projection; + input."""

    def __init__(self, site: str, width: int, config: UNet2DConfig):
        super().__init__()
        self.norm = GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = Linear(width, width)
        self.block = Block(f"{site}.block", width, config)
        self.proj_out = Linear(width, width)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        """X (b, h, w, c) -> the same shape."""
        tokens = self.proj_in(self.norm(x).flatten(1, 2))
        return x + self.proj_out(self.block(tokens, told)).reshape(x.shape)


class Level(nn.Module):
    """Layers of one resolution: layer i is res[i] and, if the level attends, spatial[i]."""

    def __init__(
        self, name: str, widths_in: list[int], width: int, attends: bool, config: UNet2DConfig
    ):
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(
                f"{name}.res.{i}",
                width_in,
                width,
                groups=config.groups,
                eps=1e-5,
                time_width=config.time_width,
            )
            for i, width_in in enumerate(widths_in)
        )
        self.spatial = nn.ModuleList(
            Transformer(f"{name}.spatial.{i}", width, config)
            for i in range(len(widths_in) if attends else 0)
        )

    def layer(self, i: int, x: Tensor, told: Told) -> Tensor:
        x = self.res[i](x, told.time, taps=NO_TAPS)
        return self.spatial[i](x, told) if self.spatial else x


class DownLevel(Level):
    def __init__(self, name, widths_in, width, attends, config, *, last: bool):
        super().__init__(name, widths_in, width, attends, config)
        self.downsample = None if last else Downsample(width)

    def forward(self, x: Tensor, told: Told, residual: Tensor | None = None) -> list[Tensor]:
        """The outputs of all layers and of the downsampler, which the way up takes as skips.

        `residual` (b, h, w, c) is added to the output of the last layer.
        """
        outs = []
        for i in range(len(self.res)):
            x = self.layer(i, x, told)
            outs.append(x)
        if residual is not None:
            outs[-1] = outs[-1] + residual
        if self.downsample is not None:
            outs.append(self.downsample(outs[-1]))
        return outs


class MidLevel(Level):
    """Two layers with the transformer of one between them."""

    def __init__(self, name: str, width: int, config: UNet2DConfig):
        super().__init__(name, [width, width], width, True, config)
        del self.spatial[1:]

    def forward(self, x: Tensor, told: Told) -> Tensor:
        x = self.layer(0, x, told)
        return self.res[1](x, told.time, taps=NO_TAPS)


class UpLevel(Level):
    def __init__(self, name, widths_in, width, attends, config, *, last: bool):
        super().__init__(name, widths_in, width, attends, config)
        self.upsample = None if last else Upsample(width)

    def forward(self, x: Tensor, skips: list[Tensor], told: Told) -> Tensor:
        """Takes its skips from the end of the list."""
        for i in range(len(self.res)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=-1), told)
        if self.upsample is None:
            return x
        # the size of the next skip: not always double, since odd sizes were rounded up going down
        return self.upsample(x, skips[-1].shape[1:3])


class UNet2D(nn.Module):
    """Predicts the noise in latents from the timestep and what a text says."""

    def __init__(self, config: UNet2DConfig):
        super().__init__()
        self.config = config
        widths, layers = config.widths, config.layers
        self.time_embedding = mlp(widths[0], config.time_width)
        self.conv_in = Conv2d(config.channels_in, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        width, skips, deepest = widths[0], [widths[0]], len(widths) - 1
        for i, (level_width, attends) in enumerate(zip(widths, config.attention, strict=True)):
            widths_in = [width] + [level_width] * (layers - 1)
            self.down.append(
                DownLevel(f"down.{i}", widths_in, level_width, attends, config, last=i == deepest)
            )
            width = level_width
            skips += [width] * (layers + (i < deepest))

        self.mid = MidLevel("mid", width, config)

        self.up = nn.ModuleList()
        for i, (level_width, attends) in enumerate(
            zip(reversed(widths), reversed(config.attention), strict=True)
        ):
            inputs = [width] + [level_width] * layers
            widths_in = [w + skips.pop() for w in inputs]
            self.up.append(
                UpLevel(f"up.{i}", widths_in, level_width, attends, config, last=i == deepest)
            )
            width = level_width

        self.norm_out = GroupNorm(config.groups, width, eps=1e-5)
        self.conv_out = Conv2d(width, config.channels_out, 3, padding=1)

    def read(self, text: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Key and value of a text (b, n, c') for every cross-attention; they hold for a whole run.

        (b, n, heads, d) each, by site.
        """
        return {site: self.get_submodule(site).read(text) for site in cross_sites(self)}

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        context: Context,
        image: ImageContext | None = None,
        residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Latents (b, c, h, w), t (b,) of any number type -> noise (b, c', h, w).

        context: what `read` made of b texts. image: for some of the same sites, the key and value
        of a picture, (b, m, heads, d) each, and the factor of what is found there. residuals: for
        the first levels on the way down, (b, h, w, c) at the level's own size, added to what its
        last layer gives. Everything is in the network's dtype but t.
        """
        if len(residuals) > len(self.down):
            raise InputError(f"{len(residuals)} residuals are given for {len(self.down)} levels")
        time = self.time_embedding(sinusoids(t, self.config.widths[0]).to(latents.dtype))
        told = Told(time, context, image or {})
        # whatever strides the caller's latents have, the result is the same to the bit
        x = self.conv_in(rearrange(latents, "b c h w -> b h w c").contiguous())

        skips = [x]
        for i, level in enumerate(self.down):
            skips += level(skips[-1], told, residuals[i] if i < len(residuals) else None)
        x = self.mid(skips[-1], told)
        for level in self.up:
            x = level(x, skips, told)

        x = self.conv_out(self.norm_out(x, silu=True))
        return rearrange(x, "b h w c -> b c h w").contiguous()


def cross_sites(unet: UNet2D) -> tuple[str, ...]:
    """The paths of all cross-attentions, in the order in which `forward` comes to them."""
    named = unet.named_modules()
    return tuple(path for path, m in named if isinstance(m, Attention) and m.is_cross)
