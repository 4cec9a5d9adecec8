"""The 3D UNet of ConsistI2V (arXiv 2402.04324), on channels-last features.

Inside the network, features are (g f, h, w, c): the f frames of each of g branches (passes under
different conditions) as one batch of images, with the frames of a branch next to each other. Frame
0 is the clean first frame, which takes part in every layer and is given a prediction of no meaning.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.consisti2v.blocks import (
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
)
from anyv2v.backbones.consisti2v.conditioning import Conditions
from anyv2v.backbones.consisti2v.config import UNetConfig
from anyv2v.backbones.i2vgen.sites import find_sites
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.nn.attention import Attention
from anyv2v.nn.embeddings import mlp, sinusoids
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.levels import layer_inputs
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock


class Level(nn.Module):
    """The layers of a UNet at one resolution.

    Layer i is res[i] (a resnet), temporal_conv[i] and, if the level attends, the transformers
    spatial[i] and temporal[i]: one list per kind of block, as in the published checkpoint.
    """

    def __init__(self, name: str, in_channels: list[int], level: int, config: UNetConfig):
        """Builds the level with one layer per entry of `in_channels`.

        name: path of the level in the network, such as "up.1", which begins the names of its sites.
        in_channels: input channels of each layer. level: index of the resolution, 0 the full one,
        at which `config` states the output channels, the heads and whether there are transformers.
        """
        super().__init__()
        channels, heads = config.level_channels[level], config.spatial_heads[level]
        attending = range(len(in_channels) if config.attention[level] else 0)
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
        self.temporal_conv = nn.ModuleList(TemporalConv(channels) for _ in in_channels)
        self.spatial = nn.ModuleList(
            SpatialTransformer(f"{name}.spatial.{i}", channels, heads, config) for i in attending
        )
        self.temporal = nn.ModuleList(
            TemporalTransformer(f"{name}.temporal.{i}", channels, config) for i in attending
        )

    def layer(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs layer i on features x (g f, h, w, c) and returns its output (g f, h, w, c')."""
        return self.attend(i, self.convolve(i, x, ctx, taps=taps), ctx, taps=taps)

    def convolve(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs resnet and temporal convolution of layer i: (g f, h, w, c) -> (g f, h, w, c')."""
        return self.temporal_conv[i](self.res[i](x, ctx.time_embedding, taps=taps), ctx.frames)

    def attend(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs the transformers of layer i on features x (g f, h, w, c), keeping the shape.

        A transformer that the layer does not have changes nothing.
        """
        for transformers in (self.spatial, self.temporal):
            if i < len(transformers):
                x = transformers[i](x, ctx, taps=taps)
        return x


class DownLevel(Level):
    """A level on the way down, which ends with a downsampler unless it is the `last`."""

    def __init__(self, name, in_channels, level, config, *, last: bool):
        super().__init__(name, in_channels, level, config)
        self.downsample = None if last else Downsample(config.level_channels[level])

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> list[Tensor]:
        """Returns the outputs of all layers, then that of the downsampler, if there is one.

        x: (g f, h, w, c). The outputs are the skip features for the way up; the last output is also
        the input of the next level.
        """
        outs = []
        for i in range(len(self.res)):
            x = self.layer(i, x, ctx, taps=taps)
            outs.append(x)
        if self.downsample is not None:
            outs.append(self.downsample(x))
        return outs


class MidLevel(Level):
    """The level between down and up levels: two layers with one spatial transformer in all."""

    def __init__(self, name: str, config: UNetConfig):
        channels = config.level_channels[-1]
        super().__init__(name, [channels, channels], len(config.level_channels) - 1, config)
        # it has its spatial transformer even if the last level has none
        heads = config.spatial_heads[-1]
        self.spatial = nn.ModuleList(
            [SpatialTransformer(f"{name}.spatial.0", channels, heads, config)]
        )
        self.temporal = nn.ModuleList()

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) of g branches with f frames each to the same shape."""
        for i in range(len(self.res)):
            x = self.layer(i, x, ctx, taps=taps)
        return x


class UpLevel(Level):
    """A level on the way up, which ends with an upsampler unless it is the `last`."""

    def __init__(self, name, in_channels, level, config, *, last: bool):
        super().__init__(name, in_channels, level, config)
        self.upsample = None if last else Upsample(config.level_channels[level])

    def forward(self, x: Tensor, skips: list[Tensor], ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) to the input (g f, h', w', c') of the next level.

        Every layer takes one skip feature off the end of the list `skips`, which is modified.
        """
        for i in range(len(self.res)):
            x = torch.cat([x, skips.pop()], dim=-1)
            # not `layer`: its caller would hold the concatenated features during the attention
            x = self.convolve(i, x, ctx, taps=taps)
            x = self.attend(i, x, ctx, taps=taps)
        if self.upsample is None:
            return x
        # the size of the next skip: not always double, since odd sizes were rounded up going down
        return self.upsample(x, skips[-1].shape[1:3])


class UNet(nn.Module):
    """ConsistI2V's UNet, which predicts epsilon, the noise, from latents and `Conditions`.

    `sites` has the names of the layers that call taps, in the order of the forward pass. Nothing in
    the network is sized by the number of frames.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, deepest = config.level_channels, len(config.level_channels) - 1
        self.time_embedding = mlp(channels[0], config.time_dim)
        self.frame_stride = mlp(channels[0], config.time_dim)
        self.conv_in = Conv2d(config.channels, channels[0], 3, padding=1)

        down_inputs, up_inputs = layer_inputs(channels, config.layers)
        # `up` is registered before `mid`, which is the order of the names in weights folders
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i in range(len(channels)):
            self.down.append(DownLevel(f"down.{i}", down_inputs[i], i, config, last=i == deepest))
        self.mid = MidLevel("mid", config)
        for i in range(len(channels)):
            self.up.append(UpLevel(f"up.{i}", up_inputs[i], deepest - i, config, last=i == deepest))

        self.norm_out = GroupNorm(config.groups, channels[0], eps=1e-5)
        self.conv_out = Conv2d(channels[0], config.channels, 3, padding=1)
        self.sites = find_sites(self)

    def condition(self, text: Tensor, stride: Tensor) -> Conditions:
        """Computes everything that depends on the conditions alone, once for a whole run.

        text (b, m, c'): hidden states of the text encoder, for b branches. stride (b,): number of
        frames of the original video from one frame to the next. Each branch becomes a sample of its
        own, see `Conditions`.
        """
        # a site is the path of its module
        attentions = [(site, m) for site, m in self.named_modules() if isinstance(m, Attention)]
        keys_values = {site: m.read(text) for site, m in attentions if m.is_cross}
        embedding = sinusoids(stride, self.config.level_channels[0]).to(text.dtype)
        samples = torch.arange(len(stride), device=stride.device)
        return Conditions(keys_values, self.frame_stride(embedding), samples)

    def forward(
        self, latents: Tensor, t: Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts epsilon (g, c, f, h, w), in the network's dtype, for g branches of n samples.

        latents (n, c, f, h, w): the clean first frame and the noisy frames of the samples, in the
        network's dtype; the prediction for the first frame means nothing. t (n,): the timesteps of
        the samples, in any number type. conditions: those of the g branches; see
        `Conditions.stack`. taps: the hooks to call at the sites.
        """
        frames = latents.shape[2]
        t = t[conditions.samples]
        time_embedding = sinusoids(t, self.config.level_channels[0]).to(latents.dtype)
        time_embedding = self.time_embedding(time_embedding) + conditions.stride
        ctx = ForwardContext(time_embedding, conditions.context, frames)

        x = rearrange(conditions.each_branch(latents), "b c f h w -> (b f) h w c")
        # contiguous, so that the strides of the caller's latents do not change the result's bits
        skips = [self.conv_in(x.contiguous())]
        for level in self.down:
            skips += level(skips[-1], ctx, taps=taps)
        x = self.mid(skips[-1], ctx, taps=taps)
        for level in self.up:
            x = level(x, skips, ctx, taps=taps)

        x = self.conv_out(self.norm_out(x, silu=True))
        return rearrange(x, "(b f) h w c -> b c f h w", f=frames).contiguous()
