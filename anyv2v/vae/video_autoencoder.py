"""The causal video autoencoder of Wan 2.1 and 2.2 (arXiv 2503.20314), diffusers' AutoencoderKLWan.

In the shapes below s is the number of pixels per latent, in height and in width. A clip is encoded
and decoded in consecutive pieces, see `anyv2v.vae.causal`. Encoding, the first piece has 1 + k t
frames and the others k t, where t is the number of frames per latent frame and k may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.nn.linear import Linear
from anyv2v.vae.causal import (
    CausalConv3d,
    CausalResnetBlock,
    ClipDownsample,
    ClipUpsample,
    FrameAttention,
    Past,
    RMSNorm,
    fold,
    unfold,
)

MOST_LATENT_CHANNELS = 256
"""The most channels of the latents that a config may give a mean and a deviation for."""
LIMIT = 1e4
"""Bound on means and standard deviations of latents, and on the inverse of the latter."""


@dataclass(frozen=True)
class VideoAutoencoderConfig:
    """Section "vae" of the config.json of a weights folder with a video autoencoder.

    Raises InputError if the numbers do not fit each other, or the latents could not stay finite.
    """

    channels: int
    """Channels of the pixels, 3 for RGB."""
    patch: int
    """Side of the squares of pixels that are the channels of one position at full resolution."""
    latent_channels: int
    """Channels of the latents, c."""
    encoder_channels: tuple[int, ...]
    """Channels of the encoder's features at each level (resolution), from full resolution down."""
    decoder_channels: tuple[int, ...]
    """Channels of the decoder's features at each level, from full resolution down."""
    layers: int
    """Number of resnets in each level of the encoder; the decoder's levels have one more."""
    temporal: tuple[bool, ...]
    """Whether the way from a level to the next also halves the number of frames; one fewer than
    levels."""
    residual: bool
    """Whether a level's input is added to its result, resampled without weights (Wan 2.2)."""
    mean: tuple[float, ...] = field(metadata={"longest": MOST_LATENT_CHANNELS})
    """Mean of each channel of the latents, which the diffusion model's latents have as zero."""
    std: tuple[float, ...] = field(metadata={"longest": MOST_LATENT_CHANNELS})
    """Standard deviation of each channel, which the diffusion model's latents have as one."""

    def __post_init__(self):
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), list):
                object.__setattr__(self, each.name, tuple(value))
        levels = len(self.encoder_channels)
        for name, length in (
            ("decoder_channels", levels),
            ("temporal", levels - 1),
            ("mean", self.latent_channels),
            ("std", self.latent_channels),
        ):
            if len(getattr(self, name)) != length:
                raise InputError(f"vae: {name} has {len(getattr(self, name))}, not {length} values")
        # the bounds are far beyond any autoencoder's, and keep the latents finite
        if not all(abs(value) <= LIMIT for value in self.mean):
            raise InputError(f"vae: mean {self.mean} is not in {-LIMIT:g}..{LIMIT:g}")
        if not all(1 / LIMIT <= value <= LIMIT for value in self.std):
            raise InputError(f"vae: std {self.std} is not in {1 / LIMIT:g}..{LIMIT:g}")
        self._check_channels()

    @property
    def spatial_compression(self) -> int:
        """Number of pixels per latent in height and in width, s."""
        return self.patch * 2 ** len(self.temporal)

    @property
    def temporal_compression(self) -> int:
        """Number of frames per latent frame after the first, t; the first is of one frame."""
        return 2 ** sum(self.temporal)

    def _check_channels(self) -> None:
        """Raises InputError if channels do not divide as resampling divides them."""
        down, up = self.encoder_channels, self.decoder_channels
        if not self.residual:
            if any(channels % 2 for channels in up[1:]):
                raise InputError(f"vae: decoder_channels {up} are not even after the first")
            return
        # values per position that a level's shortcut makes channels of, or the other way around
        boxes = [8 if temporal else 4 for temporal in self.temporal]
        if any(a * n % b for a, b, n in zip((down[0], *down), down, (*boxes, 1), strict=False)):
            raise InputError(f"vae: encoder_channels {down} are no parts of those before")
        if any(a * n % b for a, b, n in zip(up[1:], (*up[2:], up[-1]), boxes, strict=True)):
            raise InputError(f"vae: decoder_channels {up} are no multiples of those after")


class Mid(nn.Module):
    """The blocks at the lowest resolution: a resnet, attention in each frame, another resnet."""

    def __init__(self, channels: int):
        super().__init__()
        self.res = nn.ModuleList(CausalResnetBlock(channels, channels) for _ in range(2))
        self.attention = FrameAttention(channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, c) to the same shape."""
        return self.res[1](self.attention(self.res[0](x, past)), past)


class DownLevel(nn.Module):
    """Resnets at one resolution of the encoder, then a downsampler if one is given."""

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        downsample: ClipDownsample | None,
        residual: bool,
    ):
        """Builds one resnet per entry of `in_channels`, which are the resnets' input channels.

        channels: output channels of every resnet. residual: whether the level's input, resampled
        without weights, is added to its result.
        """
        super().__init__()
        self.res = nn.ModuleList(CausalResnetBlock(c, channels) for c in in_channels)
        self.downsample, self.residual = downsample, residual

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, c) to (b, f', h', w', c'), of the size after resampling."""
        h = x
        for res in self.res:
            h = res(h, past)
        side = frames = 1
        if self.downsample is not None:
            h = self.downsample(h, past)
            side, frames = 2, 1 if self.downsample.time is None else 2
        return h + fold(x, h.shape[-1], frames, side) if self.residual else h


class UpLevel(nn.Module):
    """Resnets at one resolution of the decoder, then an upsampler if one is given."""

    def __init__(
        self, in_channels: list[int], channels: int, upsample: ClipUpsample | None, residual: bool
    ):
        """Builds one resnet per entry of `in_channels`, which are the resnets' input channels.

        channels: output channels of every resnet. residual: whether the level's input, resampled
        without weights, is added to the upsampler's result.
        """
        super().__init__()
        self.res = nn.ModuleList(CausalResnetBlock(c, channels) for c in in_channels)
        self.upsample, self.residual = upsample, residual

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, c) to (b, f', h', w', c'), of the size after resampling."""
        h = x
        for res in self.res:
            h = res(h, past)
        if self.upsample is None:
            return h
        h = self.upsample(h, past)
        if not self.residual:
            return h
        frames = 1 if self.upsample.time is None else 2
        # of the clip's first frame only the last of those that it was repeated to is there
        return h + unfold(x, h.shape[-1], frames, 2)[:, -h.shape[1] :]


class Encoder(nn.Module):
    """Encodes pixels as mean and log-variance of the latents, before the layer `quant_conv`."""

    def __init__(self, config: VideoAutoencoderConfig):
        super().__init__()
        channels = config.encoder_channels[0]
        self.conv_in = CausalConv3d(config.channels * config.patch**2, channels)
        self.down = nn.ModuleList()
        for i, out_channels in enumerate(config.encoder_channels):
            in_channels = [channels] + [out_channels] * (config.layers - 1)
            last = i == len(config.temporal)
            halve = None if last else ClipDownsample(out_channels, config.temporal[i])
            self.down.append(DownLevel(in_channels, out_channels, halve, config.residual))
            channels = out_channels
        self.mid = Mid(channels)
        self.norm_out = RMSNorm(channels)
        self.conv_out = CausalConv3d(channels, 2 * config.latent_channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece of patches (b, f, h, w, c p^2) to (b, f', h', w', 2 c'): mean, log-variance.

        There are c channels of the pixels, p^2 pixels in a patch, and c' channels of the latents.
        """
        x = self.conv_in(x, past)
        for level in self.down:
            x = level(x, past)
        return self.conv_out(self.norm_out(self.mid(x, past), silu=True), past)


class Decoder(nn.Module):
    """Decodes latents, after the layer `post_quant_conv`, to pixels."""

    def __init__(self, config: VideoAutoencoderConfig):
        super().__init__()
        channels = config.decoder_channels[-1]
        self.conv_in = CausalConv3d(config.latent_channels, channels)
        self.mid = Mid(channels)
        self.up = nn.ModuleList()
        for i, out_channels in reversed([*enumerate(config.decoder_channels)]):
            in_channels = [channels] + [out_channels] * config.layers
            # without a shortcut (Wan 2.1) it is the upsampler that halves the channels
            channels = out_channels if config.residual or not i else out_channels // 2
            double = ClipUpsample(out_channels, channels, config.temporal[i - 1]) if i else None
            self.up.append(UpLevel(in_channels, out_channels, double, config.residual))
        self.norm_out = RMSNorm(channels)
        self.conv_out = CausalConv3d(channels, config.channels * config.patch**2)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece of latents (b, f', h', w', c') to patches (b, f, h, w, c p^2)."""
        x = self.mid(self.conv_in(x, past), past)
        return torch.cat([*self._rise(x, [*self.up], past)], 1)

    def _rise(self, x: Tensor, levels: list[nn.Module], past: Past) -> Iterator[Tensor]:
        """Takes a piece through the levels, and yields the patches of one frame after the other.

        What a level makes of one of its frames goes through the next levels before its next frame
        is computed. At full resolution a single frame is then in memory, of t that a latent frame
        becomes.
        """
        if not levels:
            yield self.conv_out(self.norm_out(x, silu=True), past)
            return
        for frame in x.split(1, 1):
            yield from self._rise(levels[0](frame, past), levels[1:], past)


class VideoAutoencoder(nn.Module):
    """Encodes clips as normalized latents and decodes latents to clips, piece by piece.

    Inputs and outputs of its methods are channels-first, unlike those of `encoder` and `decoder`.
    Each method is given the past of the pieces before, a dictionary that is empty for the first
    piece, and updates it. There are s pixels per latent in height and in width
    (`VideoAutoencoderConfig.spatial_compression`), and t frames per latent frame
    (`temporal_compression`), but the first latent frame is that of the clip's first frame alone.
    """

    def __init__(self, config: VideoAutoencoderConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv, self.post_quant_conv = Linear(2 * c, 2 * c), Linear(c, c)

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that the activations of a clip need.

        It is that of encoding t frames or of decoding one latent frame, whichever needs more, with
        what is remembered of the frames before. height, width: size of the frames in pixels.
        """
        # values per position at full resolution, found by counting: at 1280x704 encoding takes 43
        # times the channels in Wan 2.1 and 2.2, decoding 46 times in 2.2; smaller networks differ
        config = self.config
        values = max(38 * config.encoder_channels[0], 35 * config.decoder_channels[0])
        positions = height * width // config.patch**2
        return values * positions * self.post_quant_conv.weight.itemsize

    def posterior(self, pixels: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Encodes pixels (b, 3, f, h, w) in [-1, 1] as a normal distribution of latents.

        f is a multiple of t; in the first piece it is one more. Returns mean and log-variance of
        latents that are not normalized, (b, c, f', h/s, w/s) each; the log-variance is clamped to
        -30..20. Raises ValueError if the piece has another number of frames.
        """
        frames, p = pixels.shape[2], self.config.patch
        if (frames if past else frames - 1) % self.config.temporal_compression:
            raise ValueError(f"{frames} frames are no {'later' if past else 'first'} piece")
        # the column in a patch comes before the row
        patches = rearrange(pixels, "b c f (h y) (w x) -> b f h w (c x y)", y=p, x=p)
        moments = self.quant_conv(self.encoder(patches.contiguous(), past))
        mean, log_variance = rearrange(moments, "b f h w (k c) -> k b c f h w", k=2)
        return mean, log_variance.clamp(-30.0, 20.0)

    def normalize(self, latents: Tensor) -> Tensor:
        """Returns (latents - mean) / std, as the diffusion model has latents (b, c, f, h, w)."""
        mean, std = self._moments(latents)
        return (latents - mean) / std

    def decode(self, latents: Tensor, past: Past) -> Tensor:
        """Decodes normalized latents (b, c, f', h/s, w/s) to pixels (b, 3, f, h, w).

        f is t f', but t f' - t + 1 in the first piece. Pixels are nominally in [-1, 1], not
        clamped, and in the dtype of the weights; latents may have any float dtype.
        """
        mean, std = self._moments(latents)
        x = (latents.float() * std + mean).to(self.post_quant_conv.weight)
        x = self.post_quant_conv(rearrange(x, "b c f h w -> b f h w c").contiguous())
        patches, p = self.decoder(x, past), self.config.patch
        return rearrange(patches, "b f h w (c x y) -> b c f (h y) (w x)", y=p, x=p)

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.config.mean, self.config.std
        mean, std = (latents.new_tensor(x, dtype=torch.float32) for x in moments)
        return mean[:, None, None, None], std[:, None, None, None]
