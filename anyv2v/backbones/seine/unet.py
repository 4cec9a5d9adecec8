"""The UNet of SEINE (arXiv 2310.20700), on channels-last features.

Inside the network, features are (g f, h, w, c): the f frames of each of g branches (passes under
different conditions) as one batch of images, with the frames of a branch next to each other. Every
layer works on a view of this layout, so nothing is permuted between space and time.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.seine.conditioning import Conditions
from anyv2v.backbones.seine.config import UNetConfig
from anyv2v.backbones.seine.sites import find_sites
from anyv2v.backbones.seine.transformer import Rotary, Transformer
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.nn.attention import Attention
from anyv2v.nn.embeddings import mlp, sinusoids
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.levels import layer_inputs
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock

FIRST_CROSS = "down.0.spatial.0.block.cross"
"""Site of the first cross-attention. The branches of one sample (noisy latents with a first frame)
differ only in their text, which is read here first, so their features are equal up to here."""
EPS = 1e-5
"""Epsilon of the group normalizations outside the transformers."""


class ClipResnetBlock(ResnetBlock):
    """A resnet whose norms have the statistics of all frames of a video, not of single frames."""

    def _before_last(self, x: Tensor, time_embedding: Tensor | None) -> Tensor:
        assert time_embedding is not None and self.time is not None
        videos = len(time_embedding)
        h = clip_norm(self.norm1, x, videos)
        h, bias = self.conv1.before_bias(h)
        shift = self.time(F.silu(time_embedding))
        return clip_norm(self.norm2, h, videos, shift if bias is None else shift + bias)


def clip_norm(norm: GroupNorm, x: Tensor, videos: int, shift: Tensor | None = None) -> Tensor:
    """Normalizes features x (b f, h, w, c) of b = `videos` over all f frames, then applies SiLU.

    shift (b, c) is added to x before the normalization; None adds nothing. The shape is kept.
    """
    clips = x.unflatten(0, (videos, -1))
    return norm(clips, silu=True, shift=shift).reshape(x.shape)


class Level(nn.Module):
    """The layers of a UNet at one resolution.

    Layer i is res[i] (a resnet) and, if the level attends, the transformer spatial[i]: one list per
    kind of block, as in the published checkpoint.
    """

    def __init__(
        self,
        name: str,
        in_channels: list[int],
        i: int,
        config: UNetConfig,
        rotary: Rotary,
        attends: bool | None = None,
    ):
        """Builds level `i` of the config, from full resolution down, with the given layers.

        name: path of the level in the network, such as "up.1", which begins the names of its sites.
        in_channels: input channels of each layer. rotary: see `Transformer`. attends: whether the
        layers have transformers; None is as in the config.
        """
        super().__init__()
        channels = config.level_channels[i]
        attends = config.attention[i] if attends is None else attends
        self.res = nn.ModuleList(
            ClipResnetBlock(
                f"{name}.res.{layer}",
                layer_channels,
                channels,
                groups=config.groups,
                eps=EPS,
                time_dim=config.time_dim,
            )
            for layer, layer_channels in enumerate(in_channels)
        )
        self.spatial = nn.ModuleList(
            Transformer(
                f"{name}.spatial.{layer}",
                channels,
                heads=config.heads[i],
                context_dim=config.context_dim,
                groups=config.groups,
                rotary=rotary,
            )
            for layer in range(len(in_channels) if attends else 0)
        )

    def layer(self, i: int, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs layer i on features x (g f, h, w, c) and returns its output (g f, h, w, c')."""
        x = self.res[i](x, ctx.time_embedding, taps=taps)
        return self.spatial[i](x, ctx, taps=taps) if self.spatial else x


class DownLevel(Level):
    """A level on the way down, which ends with a downsampler unless it is the `last`."""

    def __init__(self, name, in_channels, i, config, rotary, *, last: bool):
        super().__init__(name, in_channels, i, config, rotary)
        self.downsample = None if last else Downsample(config.level_channels[i])

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
    """The level between down and up levels: a resnet, a transformer and another resnet."""

    def __init__(self, name: str, config: UNetConfig, rotary: Rotary):
        channels = config.level_channels[-1]
        super().__init__(name, [channels, channels], -1, config, rotary, attends=True)
        del self.spatial[1:]

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) of g branches with f frames each to the same shape."""
        x = self.layer(0, x, ctx, taps=taps)
        return self.res[1](x, ctx.time_embedding, taps=taps)


class UpLevel(Level):
    """A level on the way up, which ends with an upsampler unless it is the `last`."""

    def __init__(self, name, in_channels, i, config, rotary, *, last: bool):
        super().__init__(name, in_channels, i, config, rotary)
        self.upsample = None if last else Upsample(config.level_channels[i])

    def forward(self, x: Tensor, skips: list[Tensor], ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (g f, h, w, c) to the input (g f, h', w', c') of the next level.

        Every layer takes one skip feature off the end of the list `skips`, which is modified.
        """
        for i, res in enumerate(self.res):
            x = torch.cat([x, skips.pop()], dim=-1)
            # not `layer`: its caller would hold the concatenated features during the attention
            x = res(x, ctx.time_embedding, taps=taps)
            x = self.spatial[i](x, ctx, taps=taps) if self.spatial else x
        if self.upsample is None:
            return x
        # the size of the next skip: not always double, since odd sizes were rounded up going down
        return self.upsample(x, skips[-1].shape[1:3])


class UNet(nn.Module):
    """SEINE's UNet, which predicts the noise in latents (arXiv 2006.11239) from `Conditions`.

    `sites` has the names of the layers that call taps, in the order of the forward pass.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, deepest = config.level_channels, len(config.level_channels) - 1
        self.time_embedding = mlp(channels[0], config.time_dim)
        self.rotary = Rotary()
        # noisy latents, the mask, and the latents of the masked video
        self.conv_in = Conv2d(2 * config.channels + 1, channels[0], 3, padding=1)
        shared = config, self.rotary
        down_inputs, up_inputs = layer_inputs(channels, config.layers)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, inputs in enumerate(down_inputs):
            self.down.append(DownLevel(f"down.{i}", inputs, i, *shared, last=i == deepest))
        self.mid = MidLevel("mid", *shared)
        for i, inputs in enumerate(up_inputs):
            level = deepest - i
            self.up.append(UpLevel(f"up.{i}", inputs, level, *shared, last=i == deepest))
        self.norm_out = GroupNorm(config.groups, channels[0], EPS)
        self.conv_out = Conv2d(channels[0], config.channels, 3, padding=1)
        self.sites = find_sites(self)

    def condition(self, text: Tensor, masked: Tensor) -> Conditions:
        """Computes everything that depends on the conditions alone, once for a whole run.

        text (b, n, c'): hidden states of the text encoder, for b branches. masked
        (b, 1 + c, f, h, w): mask and latents of the masked video, see `masked_video`. Each branch
        becomes a sample of its own, see `Conditions`.
        """
        # a site is the path of its module
        attentions = [(site, m) for site, m in self.named_modules() if isinstance(m, Attention)]
        keys_values = {site: m.read(text) for site, m in attentions if m.is_cross}
        return Conditions(keys_values, masked, torch.arange(len(text), device=text.device))

    def forward(
        self, latents: Tensor, t: Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts the noise (g, c, f, h, w), in the network's dtype, for g branches of n samples.

        latents (n, c, f, h, w): the noisy latents of the samples, in the network's dtype. t (n,):
        the timesteps of the samples, in any number type. conditions: those of the g branches; see
        `Conditions.stack`. taps: the hooks to call at the sites.
        """
        frames = latents.shape[2]
        x = torch.cat([latents, conditions.masked], dim=1)
        if not self._shares_prefix(conditions, taps):
            x, t = x[conditions.samples], t[conditions.samples]
        time_embedding = sinusoids(t, self.config.level_channels[0]).to(x.dtype)
        time_embedding = self.time_embedding(time_embedding)
        # contiguous, so that the strides of the caller's latents do not change the result's bits
        x = self.conv_in(rearrange(x, "b c f h w -> (b f) h w c").contiguous())

        skips, ctx = self._first_layer(x, time_embedding, conditions, taps)
        for i, level in enumerate(self.down):
            skips += level(skips[-1], ctx, taps=taps, start=1 if i == 0 else 0)
        x = self.mid(skips[-1], ctx, taps=taps)
        for level in self.up:
            x = level(x, skips, ctx, taps=taps)

        x = self.conv_out(clip_norm(self.norm_out, x, len(ctx.time_embedding)))
        return rearrange(x, "(b f) h w c -> b c f h w", f=frames).contiguous()

    # The branches of one sample (negative and edited, under guidance) have the same latents and
    # timestep and differ only in their text, which the first cross-attention is the first to read.
    # Up to there the network has one batch entry per sample, after it one per branch. The two
    # methods below are all that it takes: without them the batch would be one entry per branch
    # throughout, and the first layer a layer like the others.

    def _shares_prefix(self, conditions: Conditions, taps: Taps) -> bool:
        """Whether the batch may have one entry per sample up to the first cross-attention.

        It may not where taps are called before, which must see each branch's own features.
        """
        prefix = self.sites[: self.sites.index(FIRST_CROSS)]
        called = taps.sites is None or not taps.sites.isdisjoint(prefix)
        return len(conditions.masked) < len(conditions.samples) and not called

    def _first_layer(
        self, x: Tensor, time_embedding: Tensor, conditions: Conditions, taps: Taps
    ) -> tuple[list[Tensor], ForwardContext]:
        """Runs layer 0 of level 0 on x (n f, h, w, c), with an entry per sample or per branch.

        Returns x and the layer's output, (g f, h, w, c) each, in a list, then the context that all
        other layers read, with an entry per branch.
        """
        level, samples = cast(DownLevel, self.down[0]), conditions.samples
        frames = conditions.masked.shape[2]
        if len(time_embedding) == len(samples):
            ctx = ForwardContext(time_embedding, conditions.context, frames)
            return [x, level.layer(0, x, ctx, taps=taps)], ctx

        def per_branch(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, frames))[samples].flatten(0, 1)

        # the same layer, cut in two before its cross-attention
        transformer = cast(Transformer, level.spatial[0])
        y = level.res[0](x, time_embedding, taps=taps)
        tokens, normed = transformer.block.until_self(transformer.tokens(y), taps=taps)
        x, y, tokens, normed = map(per_branch, (x, y, tokens, normed))
        ctx = ForwardContext(time_embedding[samples], conditions.context, frames)
        y = transformer.add_to(y, transformer.block.after_self(tokens, normed, ctx, taps=taps))
        return [x, y], ctx
