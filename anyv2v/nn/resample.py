"""Layers that halve and double height and width of channels-last features (b, h, w, c)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.nn.resnet import Conv2d


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2, which halves height and width.

    lopsided: whether to pad by one pixel at the right and the bottom only, as the autoencoder of
    latent diffusion does. By default all four sides are padded by one pixel.
    """

    def __init__(self, channels: int, lopsided: bool = False):
        super().__init__()
        self.lopsided = lopsided
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=0 if lopsided else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features x (b, h, w, c) to (b, h / 2, w / 2, c).

        Odd sizes are rounded up, or rounded down if the layer is `lopsided`.
        """
        return self.conv(F.pad(x, (0, 0, 0, 1, 0, 1)) if self.lopsided else x)


class Upsample(nn.Module):
    """Nearest-neighbor interpolation to a larger size, then a 3x3 convolution."""

    def __init__(self, channels: int, out_channels: int | None = None):
        """Builds a layer whose result has `out_channels`, or as many channels as its input."""
        super().__init__()
        self.conv = Conv2d(channels, out_channels or channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Maps features x (b, h, w, channels) to (b, h', w', out_channels).

        size: (h', w'); None doubles height and width.
        """
        size = size or (2 * x.shape[1], 2 * x.shape[2])
        large = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest")
        return self.conv(large.permute(0, 2, 3, 1))
