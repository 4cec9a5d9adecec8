"""Convolutional blocks on channels-last tokens: features are (r, h, w, c), r = (g b f)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps
from anyv2v.kernels.group_norm_silu import group_norm_silu


class GroupNorm(nn.GroupNorm):
    """Group normalisation of x (r, ..., c) over everything between the first and the last axis."""

    def forward(self, x: Tensor, *, silu: bool = False, shift: Tensor | None = None) -> Tensor:
        """Of x + shift, (s, c) repeated to r rows, if there is one; then SiLU if asked for."""
        return group_norm_silu(
            x, self.weight, self.bias, self.num_groups, self.eps, silu=silu, shift=shift
        )


class Conv2d(nn.Conv2d):
    """A 2D convolution of x (r, h, w, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time embedding, norm, SiLU, conv, + input; norms per frame.

    What is tapped at `site`, if it has one, is the residual branch before the input is added.
    """

    def __init__(
        self,
        site: str | None,
        width_in: int,
        width: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
    ):
        super().__init__()
        self.site = site
        self.norm1 = GroupNorm(groups, width_in, eps)
        self.conv1 = Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(time_width, width) if time_width else None
        self.norm2 = GroupNorm(groups, width, eps)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.shortcut = Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor, time: Tensor | None = None, *, taps: Taps) -> Tensor:
        """x (g b f, h, w, c), time (g b, t) or None -> (g b f, h, w, c').

        Fewer rows where taps let the first of them leave.
        """
        h = taps.residual(self.site, self.residual, x, time)
        x = taps.leaving(self.site, x)
        return h + (x if self.shortcut is None else self.shortcut(x))

    def residual(self, x: Tensor, time: Tensor | None) -> Tensor:
        h = self.conv1(self.norm1(x, silu=True))
        # every frame of a branch gets the same shift
        shift = None if time is None else self.time(F.silu(time))
        return self.conv2(self.norm2(h, silu=True, shift=shift))


class TemporalConv(nn.Module):
    """Four times norm, SiLU, convolution over three frames; + input. Norms span all frames.

    The original's 3D convolution with a (3, 1, 1) kernel is a 2D one with a (3, 1) kernel over
    (f, h w), which needs no other layout than the tokens already have.
    """

    def __init__(self, width: int, *, groups: int, eps: float = 1e-5):
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"norm{i}", GroupNorm(groups, width, eps))
            self.add_module(f"conv{i}", Conv2d(width, width, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (g b f, h, w, c) -> the same shape."""
        h = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames)
        for i in range(1, 5):
            h = self.get_submodule(f"conv{i}")(self.get_submodule(f"norm{i}")(h, silu=True))
        return x + h.reshape(x.shape)
