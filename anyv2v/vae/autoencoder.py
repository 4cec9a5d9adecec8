"""The image autoencoder of latent diffusion (arXiv 2112.10752), diffusers' AutoencoderKL.

In the shapes below s is the number of pixels per latent, in height and in width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS
from anyv2v.kernels.attention import attention
from anyv2v.nn.linear import Linear
from anyv2v.nn.resample import Downsample, Upsample
from anyv2v.nn.resnet import Conv2d, GroupNorm, ResnetBlock

EPS = 1e-6
"""Epsilon of every group normalization."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Section "vae" of a weights folder's config.json.

    Raises InputError if the scaling factor is not between 1e-4 and 1e4.
    """

    channels: int
    """Channels of the pixels, 3 for RGB."""
    latent_channels: int
    """Channels of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level (resolution), from full resolution down."""
    layers: int
    """Number of resnets in each level of the encoder; the decoder's levels have one more."""
    groups: int
    """Number of channel groups in every group normalization."""
    scaling_factor: float
    """Factor by which latents are multiplied for the diffusion model."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        # the bounds are far beyond any autoencoder's, and keep the latents finite
        if not 1e-4 <= self.scaling_factor <= 1e4:
            raise InputError(f"vae: scaling_factor {self.scaling_factor} is not in 1e-4..1e4")

    @property
    def spatial_compression(self) -> int:
        """Number of pixels per latent in height and in width, s: 2 ** (number of levels - 1)."""
        return 2 ** (len(self.level_channels) - 1)


class MidAttention(nn.Module):
    """Norm and self-attention, with one head, among the positions of a feature map; + input."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, EPS)
        self.q, self.k, self.v, self.out = (Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to the same shape."""
        tokens = self.norm(x).flatten(1, 2)
        q, k, v = (proj(tokens).unsqueeze(2) for proj in (self.q, self.k, self.v))
        return x + self.out(attention(q, k, v).flatten(2)).reshape(x.shape)


class Mid(nn.Module):
    """The blocks at the lowest resolution: a resnet, a self-attention and another resnet."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.res = nn.ModuleList(_resnets([channels, channels], channels, groups))
        self.attention = MidAttention(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to the same shape."""
        x = self.attention(self.res[0](x, taps=NO_TAPS))
        return self.res[1](x, taps=NO_TAPS)


class Level(nn.Module):
    """Resnets at one resolution, then a downsampler or upsampler if one is given."""

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        groups: int,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        """Builds one resnet per entry of `in_channels`, which are the resnets' input channels.

        channels: output channels of every resnet. groups: groups of every group normalization.
        """
        super().__init__()
        self.res = nn.ModuleList(_resnets(in_channels, channels, groups))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to (b, h', w', c'), of the size after resampling, if any."""
        for res in self.res:
            x = res(x, taps=NO_TAPS)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nn.Module):
    """Encodes pixels as mean and log-variance of the latents, before the layer `quant_conv`."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.level_channels[0]
        self.conv_in = Conv2d(config.channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, out_channels in enumerate(config.level_channels):
            in_channels = [channels] + [out_channels] * (config.layers - 1)
            last = i == len(config.level_channels) - 1
            halve = None if last else Downsample(out_channels, lopsided=True)
            self.down.append(Level(in_channels, out_channels, config.groups, downsample=halve))
            channels = out_channels
        self.mid = Mid(channels, config.groups)
        self.norm_out = GroupNorm(config.groups, channels, EPS)
        self.conv_out = Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps pixels x (b, h, w, 3) to (b, h/s, w/s, 2 c): mean, then log-variance.

        There are s pixels per latent in height and in width, and c channels of the latents.
        """
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Decodes latents, after the layer `post_quant_conv`, to pixels."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.level_channels[-1]
        self.conv_in = Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Mid(channels, config.groups)
        self.up = nn.ModuleList()
        for i, out_channels in enumerate(reversed(config.level_channels)):
            in_channels = [channels] + [out_channels] * config.layers
            last = i == len(config.level_channels) - 1
            double = None if last else Upsample(out_channels)
            self.up.append(Level(in_channels, out_channels, config.groups, upsample=double))
            channels = out_channels
        self.norm_out = GroupNorm(config.groups, channels, EPS)
        self.conv_out = Conv2d(channels, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps latents x (b, h/s, w/s, c) to pixels (b, h, w, 3), s pixels per latent and side."""
        x = self.mid(self.conv_in(x))
        for level in self.up:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Encodes images as scaled latents and decodes latents to images.

    Inputs and outputs of its methods are channels-first, unlike those of `encoder` and `decoder`.
    There are s pixels per latent in height and in width (`AutoencoderConfig.spatial_compression`).
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv, self.post_quant_conv = Conv2d(2 * c, 2 * c, 1), Conv2d(c, c, 1)

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that the activations of one image need.

        height, width: size of the image in pixels.
        """
        values = 4 * self.config.level_channels[0] * height * width
        return values * self.quant_conv.weight.itemsize

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes pixels (b, 3, h, w) in [-1, 1] as a normal distribution of unscaled latents.

        Returns mean and log-variance, (b, c, h/s, w/s) each; the log-variance is clamped to
        -30..20.
        """
        moments = self.quant_conv(
            self.encoder(rearrange(pixels, "b c h w -> b h w c").contiguous())
        )
        mean, log_variance = rearrange(moments, "b h w (k c) -> k b c h w", k=2)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encodes pixels (b, 3, h, w) in [-1, 1] as scaled latents (b, c, h/s, w/s).

        The latents are the mean of `posterior`, or a sample from it if there is a generator. The
        result has the dtype of the weights, which `pixels` must have.
        """
        latents, log_variance = self.posterior(pixels)
        if generator is not None:
            noise = torch.randn(
                latents.shape, generator=generator, device=generator.device, dtype=torch.float32
            )
            latents = latents + torch.exp(0.5 * log_variance) * noise.to(latents)
        return latents * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes scaled latents (b, c, h/s, w/s) to pixels (b, 3, h, w), nominally in [-1, 1].

        Latents and result have the dtype of the weights. Pixels are not clamped.
        """
        x = rearrange(latents / self.config.scaling_factor, "b c h w -> b h w c").contiguous()
        return rearrange(self.decoder(self.post_quant_conv(x)), "b h w c -> b c h w")


def _resnets(in_channels: list[int], out_channels: int, groups: int) -> list[ResnetBlock]:
    return [ResnetBlock(None, c, out_channels, groups=groups, eps=EPS) for c in in_channels]
