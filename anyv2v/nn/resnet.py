"""Convolutional blocks on channels-last features (b f, h, w, c): f frames of each of b videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps, branch_size, calls, repeat_to_batch
from anyv2v.kernels.group_norm_silu import group_norm_silu
from anyv2v.kernels.residual_sum import residual_sum


class GroupNorm(nn.GroupNorm):
    """Group normalization of x (b, ..., c) over all dims between the first and the last."""

    def forward(self, input: Tensor, *, silu: bool = False, shift: Tensor | None = None) -> Tensor:
        """Normalizes the input, and applies SiLU to the result if `silu`.

        `shift` (s, c) is added to the input first, each of its s vectors to b / s batch entries.
        """
        return group_norm_silu(
            input, self.weight, self.bias, self.num_groups, self.eps, silu=silu, shift=shift
        )


class Conv2d(nn.Conv2d):
    """A 2D convolution of channels-last features (b, h, w, c)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps input (b, h, w, c) to (b, h', w', c')."""
        return self._convolve(input, self.bias)

    def before_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolves x, and returns the bias (c',) that the caller has yet to add.

        On a GPU, PyTorch adds the bias in a separate pass over cuDNN's result, which the caller's
        next operation can do at no cost. On a CPU oneDNN adds it for free, so the bias returned is
        None.
        """
        if x.device.type == "cpu":
            return self(x), None
        return self._convolve(x, None), self.bias

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, bias).permute(0, 2, 3, 1)


class ResnetBlock(nn.Module):
    """Norm, SiLU, conv, + time embedding, norm, SiLU, conv, + input; each frame has its own norm.

    Taps are called at `site` with the residual branch, before the input is added to it; a block
    without a site calls none.
    """

    def __init__(
        self,
        site: str | None,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_dim: int | None = None,
    ):
        """Builds the block; without `time_dim` it takes no time embedding."""
        super().__init__()
        self.site = site
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, out_channels) if time_dim else None
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, time_embedding: Tensor | None = None, *, taps: Taps) -> Tensor:
        """Maps x (b f, h, w, c) and time_embedding (b, t) to (b f, h, w, c')."""
        if self.site is not None and calls(taps, self.site):
            (h,) = taps.feature(self.site, ResidualFeature(self, x, time_embedding))
            h, bias = repeat_to_batch(h, len(x)), None
        else:
            # no tap sees the residual by itself, so the sum below may add its bias
            h, bias = self.conv2.before_bias(self._before_last(x, time_embedding))
        if self.shortcut is not None:
            x, shortcut_bias = self.shortcut.before_bias(x)
            bias = _sum(bias, shortcut_bias)
        return h + x if bias is None else residual_sum(x, h, bias)

    def residual(self, x: Tensor, time_embedding: Tensor | None) -> Tensor:
        """Computes the residual branch (b f, h, w, c'), to which `forward` adds the input."""
        return self.conv2(self._before_last(x, time_embedding))

    def _before_last(self, x: Tensor, time_embedding: Tensor | None) -> Tensor:
        h, bias = self.conv1.before_bias(self.norm1(x, silu=True))
        shift = None
        if time_embedding is not None:
            assert self.time is not None, "this block was built without time_dim"
            # (b, c'): GroupNorm adds it to all f frames of a video
            shift = self.time(F.silu(time_embedding))
        return self.norm2(h, silu=True, shift=_sum(shift, None if bias is None else bias[None]))


@dataclass(frozen=True)
class ResidualFeature:
    """The residual branch of a resnet before it is computed: a `taps.Feature`."""

    block: ResnetBlock
    x: Tensor
    """(b f, h, w, c)."""
    time_embedding: Tensor | None
    """(b, t)."""

    @property
    def batch(self) -> int:
        """Number of frames of all batch entries, b f."""
        return len(self.x)

    @property
    def unmodified(self) -> ResidualFeature:
        """The feature as the network computes it: this one."""
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes (h,); with several `branches`, h of the first branch alone."""
        time_embedding = self.time_embedding
        if time_embedding is not None:
            time_embedding = time_embedding[: branch_size(time_embedding, branches)]
        x = self.x[: branch_size(self.x, branches)]
        return (self.block.residual(x, time_embedding),)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns (h,): a residual has no smaller form."""
        return tensors

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the recorded (h,). Raises ValueError if it was recorded at another size."""
        (h,) = recorded
        if h.shape[1:-1] != self.x.shape[1:-1]:
            raise ValueError(f"features {tuple(h.shape)} do not fit {tuple(self.x.shape)}")
        return recorded


class TemporalConv(nn.Module):
    """Four times norm, SiLU, convolution over three frames; + input. Norms span all frames.

    The original's 3D convolution with a (3, 1, 1) kernel is computed as a 2D one with a (3, 1)
    kernel over (f, h w), because that needs no layout other than the one that the tokens have.
    """

    def __init__(self, channels: int, *, groups: int, eps: float = 1e-5):
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"norm{i}", GroupNorm(groups, channels, eps))
            self.add_module(f"conv{i}", Conv2d(channels, channels, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Maps x (b f, h, w, c), with f = `frames`, to the same shape."""
        h, bias = rearrange(x, "(b f) h w c -> b f (h w) c", f=frames), None
        for i in range(1, 5):
            norm, conv = self.get_submodule(f"norm{i}"), self.get_submodule(f"conv{i}")
            assert isinstance(conv, Conv2d)
            # the bias of the convolution before this norm, which the norm adds
            shift = None if bias is None else bias[None]
            h, bias = conv.before_bias(norm(h, silu=True, shift=shift))
        h = h.reshape(x.shape)
        return x + h if bias is None else residual_sum(x, h, bias)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
