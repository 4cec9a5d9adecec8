"""Half and double the size of channels-last features (r, h, w, c)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.nn.resnet import Conv2d


class Downsample(nn.Module):
    """A convolution with stride 2, padded by 1 all round; if `lopsided`, only right and below."""

    def __init__(self, width: int, lopsided: bool = False):
        super().__init__()
        self.lopsided = lopsided
        self.conv = Conv2d(width, width, 3, stride=2, padding=0 if lopsided else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 1, 0, 1)) if self.lopsided else x)


class Upsample(nn.Module):
    """Nearest neighbours to `size` (h, w), twice the input's unless given; a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[1], 2 * x.shape[2])
        large = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest")
        return self.conv(large.permute(0, 2, 3, 1))
