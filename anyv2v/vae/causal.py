"""Causal blocks on channels-last features of clips (b, f, h, w, c), computed piece by piece.

In these blocks a frame depends on itself and on earlier frames. A clip can therefore be given in
consecutive pieces: the blocks are handed the past, which holds the last frames of earlier pieces,
and update it. The results of the pieces are those of the whole clip, and memory does not grow with
the length of the clip.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from anyv2v.kernels.attention import attention
from anyv2v.nn.linear import Linear
from anyv2v.nn.resample import Downsample, Upsample

Past: TypeAlias = dict[nn.Module, Tensor]
"""Layer -> the last frames of what it was given; empty before the first piece.

Layers replace their entries, so that only one piece's frames are in memory at a time.
"""


class RMSNorm(nn.Module):
    """Root-mean-square normalization of channels-last features (..., c) (arXiv 1910.07467).

    A position's vector is divided by its length, which counts as at least `EPS`, and multiplied by
    sqrt(c) and by the weight, in float32 or better.
    """

    EPS = 1e-12
    """The least length that a vector is divided by; it is no epsilon inside the root."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, *, silu: bool = False) -> Tensor:
        """Normalizes x (..., c), and applies SiLU to the result if `silu`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        out = x * (math.sqrt(x.shape[-1]) / length.clamp_min(self.EPS))
        out *= self.weight
        return (F.silu(out, inplace=True) if silu else out).to(x.dtype)


class Conv3d(nn.Conv3d):
    """A 3D convolution of channels-last features (b, f, h, w, c)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps the input (b, f, h, w, in_channels) to (b, f', h', w', out_channels)."""
        out = super().forward(input.permute(0, 4, 1, 2, 3))
        # on a CPU, small results come channels-first
        return out.permute(0, 2, 3, 4, 1).contiguous()


class CausalConv3d(Conv3d):
    """A convolution over a frame and the two before it; frames before the clip's first are zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3):
        """Builds a layer whose kernel has this height and width, an odd number."""
        pad = kernel // 2
        super().__init__(in_channels, out_channels, (3, kernel, kernel), padding=(0, pad, pad))

    def forward(self, input: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, in_channels) to (b, f, h, w, out_channels)."""
        before = past.pop(self) if self in past else self.nothing_before(input)
        x = torch.cat([before, input], 1)
        # a copy, since a view would keep the whole piece in memory
        past[self] = x[:, -2:].clone()
        return super().forward(x)

    def nothing_before(self, x: Tensor) -> Tensor:
        """Returns what is looked at before the first frame of x (b, f, h, w, c): two of zeros."""
        return torch.zeros_like(x[:, :1]).expand(-1, 2, -1, -1, -1)


class ClipDownsample(nn.Module):
    """Halves height and width and, if `temporal`, the number of frames after the clip's first.

    Frames 1 and 2, 3 and 4, and so on become one, computed from these and the frame before.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.space = Downsample(channels, lopsided=True)
        self.time = Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, c) to (b, f', h / 2, w / 2, c).

        f' is f if not `temporal`. Else f must be even, and f' is f / 2; but in the first piece f
        must be odd, and f' is (f + 1) / 2.
        """
        x = self.space(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.time is None:
            return x
        before, past[self.time] = past.get(self.time), x[:, -1:].clone()
        if before is not None:
            return self.time(torch.cat([before, x], 1))
        if x.shape[1] == 1:
            return x
        return torch.cat([x[:, :1], self.time(x)], 1)


class ClipUpsample(nn.Module):
    """Doubles height and width and, if `temporal`, the number of frames after the clip's first.

    Two frames are made of a frame and the two before it, the clip's first not among them, which
    itself stays one.
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: bool):
        super().__init__()
        self.time = CausalConv3d(in_channels, 2 * in_channels, kernel=1) if temporal else None
        self.space = Upsample(in_channels, out_channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, in_channels) to (b, f', 2 h, 2 w, out_channels).

        f' is f if not `temporal`, else 2 f, but 2 f - 1 in the first piece.
        """
        if self.time is not None:
            x = self._double(self.time, x, past)
        return self.space(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _double(self, time: CausalConv3d, x: Tensor, past: Past) -> Tensor:
        """Doubles the number of frames of a piece, but for the clip's first."""
        alone = x[:, :0] if time in past else x[:, :1]
        past.setdefault(time, time.nothing_before(x))
        if x.shape[1] == alone.shape[1]:
            return x
        pairs = rearrange(time(x[:, alone.shape[1] :], past), "b f h w (k c) -> b (f k) h w c", k=2)
        return torch.cat([alone, pairs], 1)


def fold(x: Tensor, channels: int, frames: int, side: int) -> Tensor:
    """Makes channels of frames and positions of a piece (b, f, h, w, c), and averages channels.

    Each box of `frames` x `side` x `side` positions becomes one. If the number of frames is odd, as
    in the first piece, zeros take the place of what the first boxes lack. The c frames side^2
    values of a box are averaged in groups, so that so many `channels` remain.

    Returns (b, ceil(f / frames), h / side, w / side, channels).
    """
    if missing := -x.shape[1] % frames:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, missing, 0))
    x = rearrange(x, "b (f t) (h y) (w x) c -> b f h w (c t y x)", t=frames, y=side, x=side)
    return x.unflatten(-1, (channels, -1)).mean(-1)


def unfold(x: Tensor, channels: int, frames: int, side: int) -> Tensor:
    """Makes frames and positions of the channels of a piece (b, f, h, w, c), which are repeated.

    Each position becomes a box of `frames` x `side` x `side` positions with so many `channels`, in
    which each of the c values stands equally often.

    Returns (b, frames f, side h, side w, channels).
    """
    x = repeat(x, "b f h w c -> b f h w (c n)", n=channels * frames * side**2 // x.shape[-1])
    return rearrange(x, "b f h w (c t y x) -> b (f t) (h y) (w x) c", t=frames, y=side, x=side)


class CausalResnetBlock(nn.Module):
    """A residual block: norm, SiLU, causal conv, norm, SiLU, causal conv, + input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = RMSNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = RMSNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.shortcut = Linear(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps a piece (b, f, h, w, in_channels) to (b, f, h, w, out_channels)."""
        h = self.conv1(self.norm1(x, silu=True), past)
        h = self.conv2(self.norm2(h, silu=True), past)
        return h + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nn.Module):
    """Norm and self-attention, with one head, among the positions of each frame; + input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.qkv, self.out = Linear(channels, 3 * channels), Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps a piece (b, f, h, w, c) to the same shape."""
        tokens = rearrange(self.norm(x), "b f h w c -> (b f) (h w) 1 c")
        q, k, v = self.qkv(tokens).chunk(3, -1)
        return x + self.out(attention(q, k, v)).reshape(x.shape)
