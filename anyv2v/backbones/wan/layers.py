"""Layers of Wan's transformer, of which some compute in float32 whatever dtype the weights have.

Features are (b, f, h, w, c): the tokens of f frames, h rows and w columns of each of b clips. Where
"float32" is said, float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.injection.taps import Taps, branch_size, calls, repeat_to_batch
from anyv2v.kernels.linear import linear
from anyv2v.nn.linear import Linear


def wide(x: Tensor) -> Tensor:
    """Returns x in float32, or in float64 if it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class WideLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input, whatever dtype the weights have."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps the input (..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return linear(input, self.weight.to(input.dtype), bias)


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last dim, times a weight, in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x (..., c); the result is float32."""
        x = wide(x)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer normalization of float32 features by weights of any dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes the input (..., c), float32, over its last dim, keeping shape and dtype."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Returns LayerNorm(x) * (1 + scale) + shift, where the norm has no weights.

    x (b, f, h, w, c), shift and scale (b, f, c) or (b, 1, c): one for each frame, or for all. All
    are of one dtype, float32 or float64, which the result has, too.
    """
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(of_frames(shift), normed, 1 + of_frames(scale))


def of_frames(x: Tensor) -> Tensor:
    """Returns x (b, f, c) as (b, f, 1, 1, c), to be combined with every token of a frame."""
    return x[:, :, None, None]


def with_own_first(own: Tensor, source: Tensor) -> Tensor:
    """Returns the tokens or frames `source` (r, n, ...) with those in `own` (b, k, ...) as first.

    The source's first k are left out. r divides b: every branch gets the same of the others.
    """
    return torch.cat([own, repeat_to_batch(source[:, own.shape[1] :], len(own))], dim=1)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose kernel is as large as its stride, computed as a matrix product."""

    def __init__(self, in_channels: int, dim: int, patch: tuple[int, ...]):
        frames, height, width = patch
        side = frames, height, width
        super().__init__(in_channels, dim, side, stride=side)

    def forward(self, input: Tensor) -> Tensor:
        """Maps latents (b, c, f', h', w') to tokens (b, f, h, w, dim), one for each patch."""
        p, q, r = self.kernel_size
        patches = rearrange(
            input, "b c (f p) (h q) (w r) -> b f h w (c p q r)", p=p, q=q, r=r
        ).contiguous()
        return linear(patches, self.weight.flatten(1), self.bias)


class FeedForward(nn.Module):
    """A feed-forward network: down(GELU(up(x))), with the approximation of GELU by a tanh.

    `site` is the module's path in the network. Taps (hooks, see `Taps`) are called under this name
    with the network's output, before the block's gate.
    """

    def __init__(self, site: str, dim: int, hidden_dim: int):
        super().__init__()
        self.site = site
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor, *, taps: Taps, own_first: bool = False) -> Tensor:
        """Maps x (b, f, h, w, c) to the same shape.

        taps: the hooks to call at the site. own_first: whether an injection leaves frame 0 out.
        """
        if not calls(taps, self.site):
            return self.residual(x)
        (h,) = taps.feature(self.site, TokenFeature(self.residual, x, own_first))
        return repeat_to_batch(h, len(x))

    def residual(self, x: Tensor) -> Tensor:
        """Computes the output for x (..., c), in the same shape."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


@dataclass(frozen=True)
class TokenFeature:
    """One tensor that a layer computes from each token for itself: an output, or a value.

    Taps (hooks) receive this object and decide what is computed; it implements
    `anyv2v.injection.taps.Feature`.
    """

    layer: Callable[[Tensor], Tensor]
    """What computes the tensor (b, n, ...) from tokens x (b, f, h, w, c): n is f, or f h w."""
    x: Tensor
    """(b, f, h, w, c): the layer's input."""
    own_first: bool
    """Whether an injected tensor leaves frame 0 out."""

    @property
    def batch(self) -> int:
        """Number of clips in the batch, b."""
        return len(self.x)

    @property
    def unmodified(self) -> TokenFeature:
        """The feature before any taps changed it, which is this object itself."""
        return self

    def compute(self, branches: int = 1) -> tuple[Tensor, ...]:
        """Computes a tuple of one tensor.

        branches: number of branches that the batch consists of. With more than one, only the first
        branch's b / branches clips are computed, or with their own frame 0 all branches. Raises
        ValueError if the batch is not a multiple of `branches`.
        """
        y = self.layer(self.x[: branch_size(self.x, branches)])
        return self.replay((y,)) if branches > 1 else (y,)

    def record(self, tensors: tuple[Tensor, ...], compact: bool) -> tuple[Tensor, ...]:
        """Returns `tensors`, the result of `compute`, which has no smaller, `compact` form."""
        return tensors

    def replay(self, recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns `recorded`, the result of `record`, in place of a computed tensor.

        If frame 0 is left out, each branch has its own of it. Raises ValueError if what was
        recorded is of another number of tokens.
        """
        (y,) = recorded
        if y[0].numel() != self.x[0].numel():
            raise ValueError(f"features {tuple(y.shape)} do not fit {tuple(self.x.shape)}")
        return (with_own_first(self.layer(self.x[:, :1]), y),) if self.own_first else recorded
