"""The image autoencoder of latent diffusion (AutoencoderKL; arXiv 2112.10752)."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int
    """Channels of the pixels."""
    latent_channels: int
    widths: tuple[int, ...]
    """Channels of the features at each level, from full resolution down."""
    layers: int
    """Resnets per level of the encoder; the decoder has one more."""
    groups: int
    scaling_factor: float
    """What latents are multiplied by on their way into the diffusion model."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        # far beyond any autoencoder's; latents have to stay finite
        if not 1e-4 <= self.scaling_factor <= 1e4:
            raise InputError(f"vae: scaling_factor {self.scaling_factor} is not in 1e-4..1e4")

    @property
    def factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return 2 ** (len(self.widths) - 1)


class MidAttention(nn.Module):
    """Self-attention among the pixels of a feature map, one head; + input."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, width, EPS)
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(1, 2)
        q, k, v = (proj(tokens).unsqueeze(2) for proj in (self.q, self.k, self.v))
        return x + self.out(attention(q, k, v).flatten(2)).reshape(x.shape)


class Mid(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.res = nn.ModuleList(_resnets([width, width], width, groups))
        self.attention = MidAttention(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.res[0](x, taps=NO_TAPS))
        return self.res[1](x, taps=NO_TAPS)


class Level(nn.Module):
    """Resnets of one resolution, then half or double the size."""

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        groups: int,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ):
        super().__init__()
        self.res = nn.ModuleList(_resnets(widths_in, width, groups))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x, taps=NO_TAPS)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nn.Module):
    """Pixels (r, h, w, 3) -> mean and log-variance (r, h/s, w/s, 2 c)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width = config.widths[0]
        self.conv_in = Conv2d(config.channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, level_width in enumerate(config.widths):
            widths_in = [width] + [level_width] * (config.layers - 1)
            last = i == len(config.widths) - 1
            halve = None if last else Downsample(level_width, lopsided=True)
            self.down.append(Level(widths_in, level_width, config.groups, downsample=halve))
            width = level_width
        self.mid = Mid(width, config.groups)
        self.norm_out = GroupNorm(config.groups, width, EPS)
        self.conv_out = Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (r, h/s, w/s, c) -> pixels (r, h, w, 3)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width = config.widths[-1]
        self.conv_in = Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = Mid(width, config.groups)
        self.up = nn.ModuleList()
        for i, level_width in enumerate(reversed(config.widths)):
            widths_in = [width] + [level_width] * config.layers
            last = i == len(config.widths) - 1
            double = None if last else Upsample(level_width)
            self.up.append(Level(widths_in, level_width, config.groups, upsample=double))
            width = level_width
        self.norm_out = GroupNorm(config.groups, width, EPS)
        self.conv_out = Conv2d(width, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.up:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Images to scaled latents and back, both channels-first outside."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv, self.post_quant_conv = Conv2d(2 * c, 2 * c, 1), Conv2d(c, c, 1)

    def activation_bytes(self, height: int, width: int) -> int:
        """What an image of that size needs at least, besides the weights."""
        return 4 * self.config.widths[0] * height * width * self.quant_conv.weight.itemsize

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (r, 3, h, w) in [-1, 1] -> mean and log-variance, each (r, c, h/s, w/s)."""
        moments = self.quant_conv(
            self.encoder(rearrange(pixels, "r c h w -> r h w c").contiguous())
        )
        mean, log_variance = rearrange(moments, "r h w (k c) -> k r c h w", k=2)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (r, 3, h, w) in [-1, 1] -> scaled latents (r, c, h/s, w/s).

        The posterior's mean or, with a generator, a sample of it.
        """
        latents, log_variance = self.posterior(pixels)
        if generator is not None:
            noise = torch.randn(
                latents.shape, generator=generator, device=generator.device, dtype=torch.float32
            )
            latents = latents + torch.exp(0.5 * log_variance) * noise.to(latents)
        return latents * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (r, c, h/s, w/s) -> pixels (r, 3, h, w), about [-1, 1]."""
        x = rearrange(latents / self.config.scaling_factor, "r c h w -> r h w c").contiguous()
        return rearrange(self.decoder(self.post_quant_conv(x)), "r h w c -> r c h w")


def _resnets(widths_in: list[int], width: int, groups: int) -> list[ResnetBlock]:
    return [ResnetBlock(None, width_in, width, groups=groups, eps=EPS) for width_in in widths_in]
