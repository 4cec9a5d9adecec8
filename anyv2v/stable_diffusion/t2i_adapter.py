"""T2I-Adapter (arXiv 2302.08453): a picture of structure or colour, as features for a UNet."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.nn.resnet import Conv2d

KINDS = ("full", "light")


@dataclass(frozen=True)
class T2IAdapterConfig:
    kind: str
    """"full", or "light", which works in a quarter of the width."""
    channels: int
    """Of the picture: 1 for canny and sketch, 3 for depth and colour."""
    widths: tuple[int, ...]
    """Channels of the features, those of the UNet's levels."""
    layers: int
    """Residual blocks per level."""
    factor: int
    """Pixels per latent, both ways."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.kind not in KINDS:
            raise InputError(f"adapter: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        checks.whole("adapter: channels", self.channels, 1, 3)
        checks.whole("adapter: factor", self.factor, 1, 64)
        if self.kind == "light" and any(width % 4 for width in self.widths):
            raise InputError(f"adapter: widths {self.widths} of a light adapter have no quarters")


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution; + input."""

    def __init__(self, width: int, last_kernel: int):
        super().__init__()
        self.conv1 = Conv2d(width, width, 3, padding=1)
        self.conv2 = Conv2d(width, width, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution; unless it is the first, at half of the one before."""

    def __init__(self, width_in: int, width: int, config: T2IAdapterConfig, *, first: bool):
        super().__init__()
        light = config.kind == "light"
        inner = width // 4 if light else width
        self.first = first
        self.proj_in = Conv2d(width_in, inner, 1) if light or width_in != width else None
        self.res = nn.ModuleList(
            ResidualBlock(inner, last_kernel=3 if light else 1) for _ in range(config.layers)
        )
        self.proj_out = Conv2d(inner, width, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else halve(x)
        x = x if self.proj_in is None else self.proj_in(x)
        for block in self.res:
            x = block(x)
        return x if self.proj_out is None else self.proj_out(x)


class T2IAdapterNetwork(nn.Module):
    def __init__(self, config: T2IAdapterConfig):
        super().__init__()
        self.config = config
        widths, cells = config.widths, config.channels * config.factor**2
        full = config.kind == "full"
        self.conv_in = Conv2d(cells, widths[0], 3, padding=1) if full else None
        inputs = (widths[0] if full else cells, *widths)
        self.levels = nn.ModuleList(
            Level(width_in, width, config, first=i == 0)
            for i, (width_in, width) in enumerate(pairwise(inputs))
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Picture (b, c, h, w), values 0..1 -> for each level of the UNet (b, h', w', c').

        The first is of h / factor by w / factor, each other of half the one before, rounded up:
        `residuals` of `UNet2D`. InputError: other channels, sides that the factor does not divide.
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
    """The mean of every 2x2 of x (b, h, w, c); at an odd edge of what is there."""
    small = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, stride=2, ceil_mode=True)
    return small.permute(0, 2, 3, 1)
