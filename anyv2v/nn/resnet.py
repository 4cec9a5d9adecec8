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
    """Group normalization of channels-last features (b, ..., c) (arXiv 1803.08494).

    Statistics are computed for each batch entry and group of channels, over all dims between the
    first and the last.
    """

    def forward(self, input: Tensor, *, silu: bool = False, shift: Tensor | None = None) -> Tensor:
        """Normalizes the input (b, ..., c), and applies SiLU to the result if `silu`.

        shift: vectors (s, c) that are added to the input before the normalization, each to b / s
        consecutive batch entries; None adds nothing.
        """
        return group_norm_silu(
            input, self.weight, self.bias, self.num_groups, self.eps, silu=silu, shift=shift
        )


class Conv2d(nn.Conv2d):
    """A 2D convolution of channels-last features (b, h, w, c)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps the input (b, h, w, in_channels) to (b, h', w', out_channels)."""
        return self._convolve(input, self.bias)

    def before_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolves x (b, h, w, c) and returns the result with the bias still to be added, if any.

        The bias (c',) is None if it has already been added, as on a CPU, where oneDNN does so at no
        cost. On a GPU, PyTorch would add the bias in a separate pass over cuDNN's result; the
        caller can let its next operation do so at no cost.
        """
        if x.device.type == "cpu":
            return self(x), None
        return self._convolve(x, None), self.bias

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, bias).permute(0, 2, 3, 1)


class ResnetBlock(nn.Module):
    """A residual block: norm, SiLU, conv, + time embedding, norm, SiLU, conv, + input.

    Statistics of the norms are those of single frames. `site` is the block's own path in the
    network, such as "up.1.res.1". Taps (hooks, see `Taps`) are called under this name with the
    residual branch, before the input is added; if `site` is None, no taps are called.
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
        """Builds the block; groups and eps are those of both group normalizations.

        time_dim: length of the time embedding; None builds a block that takes none.
        """
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
        """Maps x (b f, h, w, c), f frames of each of b videos, to (b f, h, w, c').

        time_embedding: (b, t), which is added for all frames of a video; None for a block built
        without `time_dim`. taps: the hooks to call at the block's site.
        """
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
        """Computes the residual branch (b f, h, w, c'), to which `forward` adds the input.

        The arguments are those of `forward`.
        """
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
    """The residual branch of a resnet, which is computed on demand.

    Taps (hooks) receive this object and decide what is computed; it implements
    `anyv2v.injection.taps.Feature`.
    """

    block: ResnetBlock
    """The resnet whose residual branch this is."""
    x: Tensor
    """(b f, h, w, c): the block's input, f frames of each of b videos."""
    time_embedding: Tensor | None
    """(b, t), or None for a block that takes none."""

    @property
    def batch(self) -> int:
        """Number of frames of all videos in the batch, b f."""
        return len(self.x)

    @property
    def unmodified(self) -> ResidualFeature:
        """The feature before any taps changed it, which is this object itself."""
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes a tuple of one tensor, the residual branch (b f, h, w, c').

        branches: number of branches (passes under different conditions) that the batch consists of.
        With more than one, only the first branch's b f / branches frames are computed. Raises
        ValueError if the batch is not a multiple of `branches`.
        """
        time_embedding = self.time_embedding
        if time_embedding is not None:
            time_embedding = time_embedding[: branch_size(time_embedding, branches)]
        x = self.x[: branch_size(self.x, branches)]
        return (self.block.residual(x, time_embedding),)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns `tensors`, the result of `compute`: a residual has no smaller, `compact` form."""
        return tensors

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns `recorded`, the result of `record`, in place of a computed residual.

        Raises ValueError if the recorded residual's height or width differs from the input's.
        """
        (h,) = recorded
        if h.shape[1:-1] != self.x.shape[1:-1]:
            raise ValueError(f"features {tuple(h.shape)} do not fit {tuple(self.x.shape)}")
        return recorded


class TemporalConv(nn.Module):
    """A residual block along the frames: four times norm, SiLU and convolution, + input.

    Each convolution spans three frames, and each norm all frames of a video. The original's 3D
    convolution with a (3, 1, 1) kernel is computed as a 2D one with a (3, 1) kernel over
    (f, h w), which needs no other memory layout than the features already have.
    """

    def __init__(self, channels: int, *, groups: int, eps: float = 1e-5):
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"norm{i}", GroupNorm(groups, channels, eps))
            self.add_module(f"conv{i}", Conv2d(channels, channels, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f = `frames` frames to the same shape."""
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
