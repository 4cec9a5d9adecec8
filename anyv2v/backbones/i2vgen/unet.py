"""The 3D UNet of I2VGen-XL (arXiv 2311.04145), on channels-last features.

Inside the network, features are (g f, h, w, c): the f frames of each of g branches (passes under
different conditions) as one batch of images, with the frames of a branch next to each other. Every
layer works on a view of this layout, so nothing is permuted between space and time.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.i2vgen.conditioning import Conditioning, Conditions
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.sites import find_sites
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.nn.attention import Attention
from anyv2v.nn.embeddings import mlp, sinusoids
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.levels import layer_inputs
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock, TemporalConv
from anyv2v.nn.transformer import SpatialTransformer, TemporalTransformer

FIRST_CROSS = "down.0.spatial.0.block.cross"
"""Site of the first cross-attention. The branches of one sample (noisy latents with a first frame)
differ only in their context, which is read here first, so their features are equal up to here."""


class Level(nn.Module):
    """The layers of a UNet at one resolution.

    Layer i is res[i] (a resnet), temporal_conv[i] and, if the level attends, the transformers
    spatial[i] and temporal[i]: one list per kind of block, as in the published checkpoint.
    """

    def __init__(
        self, name: str, in_channels: list[int], channels: int, attends: bool, config: UNetConfig
    ):
        """Builds the level with one layer per entry of `in_channels`.

        name: path of the level in the network, such as "up.1", which begins the names of its sites.
        in_channels: input channels of each layer. channels: output channels of every layer.
        attends: whether the layers have transformers.
        """
        super().__init__()
        sizes = dict(heads=config.heads(channels), head_dim=config.head_dim, groups=config.groups)
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
        self.temporal_conv = nn.ModuleList(
            TemporalConv(channels, groups=config.groups) for _ in in_channels
        )
        self.spatial = nn.ModuleList(
            SpatialTransformer(
                f"{name}.spatial.{i}", channels, context_dim=config.context_dim, **sizes
            )
            for i in range(len(in_channels) if attends else 0)
        )
        self.temporal = nn.ModuleList(
            TemporalTransformer(f"{name}.temporal.{i}", channels, **sizes)
            for i in range(len(in_channels) if attends else 0)
        )

    def layer(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs layer i on features x (g f, h, w, c) and returns its output (g f, h, w, c')."""
        x = self.convolve(i, x, ctx.time_embedding, ctx.frames, taps=taps)
        return self.attend(i, x, ctx, taps=taps)

    def convolve(
        self, i: int, x: Tensor, time_embedding: Tensor, frames: int, *, taps: Taps
    ) -> Tensor:
        """Runs the resnet and the temporal convolution of layer i.

        Maps features x (g f, h, w, c) of f = `frames` frames and time_embedding (g, t) to
        (g f, h, w, c').
        """
        return self.temporal_conv[i](self.res[i](x, time_embedding, taps=taps), frames)

    def attend(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs the transformers of layer i on features x (g f, h, w, c), keeping the shape.

        Returns x itself if the level has no transformers.
        """
        if not self.spatial:
            return x
        x = self.spatial[i](x, ctx, taps=taps)
        return self.temporal[i](x, ctx.frames, taps=taps)


class DownLevel(Level):
    """A level on the way down, which ends with a downsampler unless it is the `last`."""

    def __init__(self, name, in_channels, channels, attends, config, *, last: bool):
        super().__init__(name, in_channels, channels, attends, config)
        self.downsample = None if last else Downsample(channels)

    def forward(
        self, x: Tensor, ctx: ForwardContext, *, taps: Taps, start: int = 0
    ) -> list[Tensor]:
        """Returns the outputs of the layers from index `start` on, then that of the downsampler.

        x (g f, h, w, c): input of the first layer that is run. The outputs are the skip features
        for the way up; the last output is also the input of the next level.
        """
        outs = []
        for i in range(start, len(self.res)):
            x = self.layer(i, x, ctx, taps=taps)
            outs.append(x)
        if self.downsample is not None:
            outs.append(self.downsample(x))
        return outs


class MidLevel(Level):
    """The level between down and up levels: two layers, the second of which has no transformers."""

    def __init__(self, name: str, channels: int, config: UNetConfig):
        super().__init__(name, [channels, channels], channels, True, config)
        del self.spatial[1:], self.temporal[1:]

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) of g branches with f frames each to the same shape."""
        x = self.layer(0, x, ctx, taps=taps)
        return self.convolve(1, x, ctx.time_embedding, ctx.frames, taps=taps)


class UpLevel(Level):
    """A level on the way up, which ends with an upsampler unless it is the `last`."""

    def __init__(self, name, in_channels, channels, attends, config, *, last: bool):
        super().__init__(name, in_channels, channels, attends, config)
        self.upsample = None if last else Upsample(channels)

    def forward(self, x: Tensor, skips: list[Tensor], ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) to the input (g f, h', w', c') of the next level.

        Every layer takes one skip feature off the end of the list `skips`, which is modified.
        """
        for i in range(len(self.res)):
            x = torch.cat([x, skips.pop()], dim=-1)
            # not `layer`: its caller would hold the concatenated features during the attention
            x = self.convolve(i, x, ctx.time_embedding, ctx.frames, taps=taps)
            x = self.attend(i, x, ctx, taps=taps)
        if self.upsample is None:
            return x
        # the size of the next skip: not always double, since odd sizes were rounded up going down
        return self.upsample(x, skips[-1].shape[1:3])


class UNet(nn.Module):
    """I2VGen-XL's UNet, which predicts v (arXiv 2202.00512) from noisy latents and `Conditions`.

    `sites` has the names of the layers that call taps, in the order of the forward pass.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, deepest = config.level_channels, len(config.level_channels) - 1
        self.conditioning = Conditioning(config)
        self.time_embedding = mlp(channels[0], config.time_dim)
        self.conv_in = Conv2d(2 * config.channels, channels[0], 3, padding=1)
        # this one has eight heads, however many channels there are
        self.transformer_in = TemporalTransformer(
            "transformer_in", channels[0], heads=8, head_dim=config.head_dim, groups=config.groups
        )

        levels = list(zip(channels, config.attention, strict=True))
        down_inputs, up_inputs = layer_inputs(channels, config.layers)
        # `up` is registered before `mid`, which is the order of the names in weights folders
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, level in enumerate(levels):
            self.down.append(
                DownLevel(f"down.{i}", down_inputs[i], *level, config, last=i == deepest)
            )
        self.mid = MidLevel("mid", channels[-1], config)
        for i, level in enumerate(reversed(levels)):
            self.up.append(UpLevel(f"up.{i}", up_inputs[i], *level, config, last=i == deepest))

        self.norm_out = GroupNorm(config.groups, channels[0], eps=1e-5)
        self.conv_out = Conv2d(channels[0], config.channels, 3, padding=1)
        self.sites = find_sites(self)

    def condition(
        self, text: Tensor, image_embedding: Tensor, image_latents: Tensor, fps: Tensor
    ) -> Conditions:
        """Computes everything that depends on the conditions alone, once for a whole run.

        text (b, n, c'): hidden states of the text encoder, for b branches. image_embedding (b, c'):
        CLIP embedding of the first frame. image_latents (b, c, f, h, w): the first frame's latents,
        extended to a clip by the function `image_latents`. fps (b,): frames per second. Each branch
        becomes a sample of its own, see `Conditions`.
        """
        context, latents, fps_embedding = self.conditioning(
            text, image_embedding, image_latents, fps
        )
        # a site is the path of its module
        attentions = [(site, m) for site, m in self.named_modules() if isinstance(m, Attention)]
        keys_values = {site: m.read(context) for site, m in attentions if m.is_cross}
        samples = torch.arange(len(fps), device=fps.device)
        return Conditions(keys_values, latents, fps_embedding, samples)

    def forward(
        self, latents: Tensor, t: Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts v (g, c, f, h, w), in the network's dtype, for g branches of n samples.

        latents (n, c, f, h, w): the noisy latents of the samples, in the network's dtype. t (n,):
        the timesteps of the samples, in any number type. conditions: those of the g branches; see
        `Conditions.stack`. taps: the hooks to call at the sites.
        """
        latents, t, conditions = self._prefix_batch(latents, t, conditions, taps)
        frames = latents.shape[2]
        time_embedding = sinusoids(t, self.config.level_channels[0]).to(latents.dtype)
        time_embedding = self.time_embedding(time_embedding) + conditions.fps

        x = torch.cat([latents, conditions.latents], dim=1)
        # contiguous, so that the strides of the caller's latents do not change the result's bits
        x = self.conv_in(rearrange(x, "b c f h w -> (b f) h w c").contiguous())
        x = self.transformer_in(x, frames, taps=taps)

        skips, ctx = self._first_layer(x, time_embedding, conditions, taps)
        for i, level in enumerate(self.down):
            skips += level(skips[-1], ctx, taps=taps, start=1 if i == 0 else 0)
        x = self.mid(skips[-1], ctx, taps=taps)
        for level in self.up:
            x = level(x, skips, ctx, taps=taps)

        x = self.conv_out(self.norm_out(x, silu=True))
        return rearrange(x, "(b f) h w c -> b c f h w", f=frames).contiguous()

    # The branches of one sample (negative and edited, under guidance) have the same latents and
    # timestep and differ only in their context, which the first cross-attention is the first to
    # read. Up to there the network has one batch entry per sample, after it one per branch. That
    # saves 2.5 % of sampling at 512x512 with 16 frames, and more where there are fewer channels.
    # The two methods below are all that it takes: without them the batch would be one entry per
    # branch throughout, and the first layer a layer like the others.

    def _prefix_batch(
        self, latents: Tensor, t: Tensor, conditions: Conditions, taps: Taps
    ) -> tuple[Tensor, Tensor, Conditions]:
        """Returns the inputs with one batch entry per branch if taps must see each branch's own.

        That is so where taps are called before `FIRST_CROSS`; otherwise the inputs stay as they
        are, one entry per sample.
        """
        if len(latents) >= len(conditions.samples):
            return latents, t, conditions
        if FIRST_CROSS in self.sites and taps.sites is not None:
            prefix = self.sites[: self.sites.index(FIRST_CROSS)]
            if not taps.sites.intersection(prefix):
                return latents, t, conditions
        return latents[conditions.samples], t[conditions.samples], conditions.one_per_branch()

    def _first_layer(
        self, x: Tensor, time_embedding: Tensor, conditions: Conditions, taps: Taps
    ) -> tuple[list[Tensor], ForwardContext]:
        """Runs layer 0 of level 0 on x (n f, h, w, c), with an entry per sample or per branch.

        Returns x and the layer's output, (g f, h, w, c) each, in a list, then the context that all
        other layers read, with an entry per branch.
        """
        level, samples = cast(DownLevel, self.down[0]), conditions.samples
        frames = conditions.latents.shape[2]
        if len(time_embedding) == len(samples):
            ctx = ForwardContext(time_embedding, conditions.context, frames)
            return [x, level.layer(0, x, ctx, taps=taps)], ctx

        def per_branch(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, frames))[samples].flatten(0, 1)

        # the same layer, cut in two before its cross-attention
        spatial = cast(SpatialTransformer, level.spatial[0])
        y = level.convolve(0, x, time_embedding, frames, taps=taps)
        tokens, normed = spatial.block.until_self(spatial.tokens(y), taps=taps)
        x, y, tokens, normed = map(per_branch, (x, y, tokens, normed))
        ctx = ForwardContext(time_embedding[samples], conditions.context, frames)
        y = spatial.add_to(y, spatial.block.after_self(tokens, normed, ctx, taps=taps))
        return [x, level.temporal[0](y, frames, taps=taps)], ctx
