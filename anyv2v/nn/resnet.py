"""Convolutional blocks on channels-last tokens: features are (r, h, w, c), r = (g b f)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps, branch_size, calls, repeat_to_batch
from anyv2v.kernels.group_norm_silu import group_norm_silu
from anyv2v.kernels.residual_sum import residual_sum


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
        return self._convolved(x, self.bias)

    def before_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The convolution, and the bias (c,) that its reader has yet to add; None if it has it.

        On a GPU PyTorch adds the bias in a pass of its own over all that cuDNN gave, which the
        next operation can do on its way. On a CPU oneDNN adds it for nothing.
        """
        if x.device.type == "cpu":
            return self(x), None
        return self._convolved(x, None), self.bias

    def _convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, bias).permute(0, 2, 3, 1)


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

    def forward(self, x: Tensor, emb: Tensor | None = None, *, taps: Taps) -> Tensor:
        """X (g b f, h, w, c), embedding of the time (g b, t) or None -> (g b f, h, w, c')."""
        if calls(taps, self.site):
            (h,) = taps.feature(self.site, ResidualFeature(self, x, emb))
            h, bias = repeat_to_batch(h, len(x)), None
        else:
            # nobody sees the residual by itself: its bias is added in the sum below
            h, bias = self.conv2.before_bias(self._before_last(x, emb))
        if self.shortcut is not None:
            x, more = self.shortcut.before_bias(x)
            bias = _sum(bias, more)
        return h + x if bias is None else residual_sum(x, h, bias)

    def residual(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """What the input is added to, (g b f, h, w, c')."""
        return self.conv2(self._before_last(x, emb))

    def _before_last(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h, bias = self.conv1.before_bias(self.norm1(x, silu=True))
        # every frame of a branch gets the same shift
        shift = None if emb is None else self.time(F.silu(emb))
        return self.norm2(h, silu=True, shift=_sum(shift, None if bias is None else bias[None]))


@dataclass(frozen=True)
class ResidualFeature:
    """The residual branch of a resnet, as taps are given it: a `taps.Feature`."""

    block: ResnetBlock
    x: Tensor
    """(g b f, h, w, c)."""
    emb: Tensor | None
    """(g b, t)."""

    @property
    def batch(self) -> int:
        return len(self.x)

    @property
    def unmodified(self):
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        emb = None if self.emb is None else self.emb[: branch_size(self.emb, branches)]
        return (self.block.residual(self.x[: branch_size(self.x, branches)], emb),)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        return tensors

    def replay(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = kept
        if h.shape[1:-1] != self.x.shape[1:-1]:
            raise ValueError(f"features {tuple(h.shape)} do not fit {tuple(self.x.shape)}")
        return kept


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
        """X (g b f, h, w, c) -> the same shape."""
        h, bias = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames), None
        for i in range(1, 5):
            norm, conv = self.get_submodule(f"norm{i}"), self.get_submodule(f"conv{i}")
            shift = None if bias is None else bias[None]
            h, bias = conv.before_bias(norm(h, silu=True, shift=shift))
        h = h.reshape(x.shape)
        return x + h if bias is None else residual_sum(x, h, bias)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
