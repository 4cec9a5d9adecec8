"""T2I-Adapter (arXiv 2302.08453), which guides a UNet by an image of structure or color."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.nn.resnet import Conv2d

KINDS = ("full", "light")
"""The kinds of T2I-Adapter; see `T2IAdapterConfig.kind`."""


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Section "adapter" of a T2I-Adapter's config.json.

    Raises InputError if a value is unknown or out of range, or the channels of a level of a "light"
    adapter are not divisible by 4.
    """

    kind: str
    """"full", or "light" for residual blocks with a quarter of the level's channels."""
    channels: int
    """Channels of the input image: 1 for canny and sketch, 3 for depth and color."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the UNet's features at each level (resolution), from full resolution down."""
    layers: int
    """Number of residual blocks per level."""
    factor: int
    """Number of pixels per latent, in height and in width."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        if self.kind not in KINDS:
            raise InputError(f"adapter: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        checks.whole("adapter: channels", self.channels, 1, 3)
        checks.whole("adapter: factor", self.factor, 1, 64)
        if self.kind == "light" and any(channels % 4 for channels in self.level_channels):
            raise InputError(
                f"adapter: widths {self.level_channels} of a light adapter have no quarters"
            )


class ResidualBlock(nn.Module):
    """A residual block: 3x3 convolution, ReLU, convolution; + input."""

    def __init__(self, channels: int, last_kernel: int):
        """Builds the block; `last_kernel` (odd) is the second convolution's kernel size."""
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution: the input's in the `first` level, half of it in others."""

    def __init__(
        self, in_channels: int, out_channels: int, config: T2IAdapterConfig, *, first: bool
    ):
        super().__init__()
        light = config.kind == "light"
        inner = out_channels // 4 if light else out_channels
        project = light or in_channels != out_channels
        self.first = first
        self.proj_in = Conv2d(in_channels, inner, 1) if project else None
        self.res = nn.ModuleList(
            ResidualBlock(inner, last_kernel=3 if light else 1) for _ in range(config.layers)
        )
        self.proj_out = Conv2d(inner, out_channels, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to (b, h', w', c').

        h' and w' are h and w in the first level, and half of them, rounded up, in every other.
        """
        x = x if self.first else halve(x)
        x = x if self.proj_in is None else self.proj_in(x)
        for block in self.res:
            x = block(x)
        return x if self.proj_out is None else self.proj_out(x)


class T2IAdapterNetwork(nn.Module):
    """The network of a T2I-Adapter, which computes features for a UNet's levels from an image."""

    def __init__(self, config: T2IAdapterConfig):
        super().__init__()
        self.config = config
        # the pixels of a latent become its channels
        channels, pixel_channels = config.level_channels, config.channels * config.factor**2
        full = config.kind == "full"
        self.conv_in = Conv2d(pixel_channels, channels[0], 3, padding=1) if full else None
        inputs = (channels[0] if full else pixel_channels, *channels)
        self.levels = nn.ModuleList(
            Level(in_channels, out_channels, config, first=i == 0)
            for i, (in_channels, out_channels) in enumerate(pairwise(inputs))
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Maps images (b, c, h, w) with values 0..1 to one feature (b, h', w', c') per level.

        The features, from full resolution down, are the argument `residuals` of `UNet2D.forward`.
        The first is of the latents' size, h / factor by w / factor; each other one is half as high
        and wide as the one before, rounded up. Raises InputError if the images do not have the
        config's `channels`, or `factor` does not divide h and w.
        """
        channels, factor = self.config.channels, self.config.factor
        b, c, h, w = picture.shape
        if c != channels or h % factor or w % factor:
            raise InputError(
                f"a picture of {c} channels, {w}x{h}, for an adapter of {channels}; "
                f"its sides must be divisible by {factor}"
            )
        x = rearrange(picture, "b c (h y) (w x) -> b h w (c y x)", y=factor, x=factor)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def halve(x: Tensor) -> Tensor:
    """Averages every 2x2 pixels of x (b, h, w, c): (b, h / 2, w / 2, c), rounded up.

    If a size is odd, the last row or column averages the pixels that exist.
    """
    small = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, stride=2, ceil_mode=True)
    return small.permute(0, 2, 3, 1)
