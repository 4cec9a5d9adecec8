"""SEINE's transformer: attention within frames, to the text and along the frames in one block.

Features are (b f, h, w, c): f frames of each of b videos. The block sees them as tokens, of the
shape (b f, h w, c) within a frame and (b, f, h w, c) along the frames.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.seine.config import ROTATED_PAIRS
from anyv2v.injection.taps import Taps
from anyv2v.kernels.short_attention import apply_probabilities
from anyv2v.nn.attention import Attention, TemporalAttention
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.linear import Linear
from anyv2v.nn.resnet import GroupNorm
from anyv2v.nn.rotary import rotate_by_frame
from anyv2v.nn.transformer import AddNorm, GegluFeedForward, LayerNorm

BUCKETS = 32
"""Number of classes of the distance between two frames, half of them for each direction."""
NEAR = 8
"""The distance, in frames, up to which every distance is a class of its own."""


class Rotary(nn.Module):
    """The frequencies of the rotary position embedding, which all temporal attentions share."""

    def __init__(self):
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(ROTATED_PAIRS))
        """(p,): radians per frame by which each of the p pairs of channels is rotated."""


class RelativeAttention(TemporalAttention):
    """Self-attention among the f frames at each position of x (b, f, h w, c), told of their order.

    The first channels of query and key are rotated by an angle that grows from frame to frame
    (`rotate_by_frame`), and a learned bias for the distance of two frames is added to each score.
    Taps (hooks) see query and key before the rotation.
    """

    def __init__(self, site: str, dim: int, heads: int, head_dim: int, rotary: Rotary):
        """Builds the attention; see `Attention`. rotary: holds the frequencies of the rotation."""
        super().__init__(site, dim, heads, head_dim)
        self.position_bias = nn.Embedding(BUCKETS, heads)
        # in a tuple, in which PyTorch does not look for parts of this module: the frequencies
        # belong to the UNet, and are saved once
        self._rotary = (rotary,)

    def bias(self, frames: int) -> Tensor:
        """Returns what is added to the scores among `frames` frames, (heads, query, key)."""
        index = torch.arange(frames, device=self.position_bias.weight.device)
        return self.position_bias(bucket(index - index[:, None])).permute(2, 0, 1)

    def compact(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns a tuple of one tensor, the attention probabilities (b, h w, heads, f, f)."""
        bias = self.bias(q.shape[1])
        return (biased_probabilities(self._rotate(q), self._rotate(k), bias),)

    def mix(self, *tensors: Tensor) -> Tensor:
        """Computes softmax(q' k'^T / sqrt(d) + bias) v along the frames: (b, f, h w, heads, d).

        q', k': the rotated query and key. tensors: (q, k, v), or (probabilities, v) with the result
        of `compact`.
        """
        if len(tensors) == 3:
            q, k, v = tensors
            weights = biased_probabilities(self._rotate(q), self._rotate(k), self.bias(q.shape[1]))
            tensors = weights, v
        return apply_probabilities(*tensors)

    def _rotate(self, x: Tensor) -> Tensor:
        (rotary,) = self._rotary
        return rotate_by_frame(x, rotary.frequencies)


def biased_probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Computes softmax(q k^T / sqrt(d) + bias) at every position: (b, p, heads, n, m), contiguous.

    q (b, n, p, heads, d), k (b, m, p, heads, d), bias (heads, n, m). The kernels of
    `anyv2v.kernels.short_attention` add no bias, so these are operations of PyTorch, and the
    kernel `apply_probabilities` does the rest. Scores are float32 on a CPU, where half types
    multiply no faster, and of the dtype of q elsewhere; the softmax is taken in float32 (float64
    for float64), and the result has the dtype of q.
    """
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    if q.device.type == "cpu":
        q, k = q.to(wide), k.to(wide)
    # scaled before the product, which half types could not hold otherwise
    query, key = (x.permute(0, 2, 3, 1, 4) for x in (q * q.shape[-1] ** -0.5, k))
    scores = torch.matmul(query, key.mT) + bias.to(q.dtype)
    return scores.softmax(dim=-1, dtype=wide).to(dtype)


def bucket(distance: Tensor) -> Tensor:
    """Returns the class, 0 to 31, of distances between frames: key minus query, int64.

    Distances below 8 have a class each, and beyond that a class spans a factor of 2 ** (1/4), up to
    the one of all distances from 27 on. The classes of keys after the query are 16 higher. This is
    the relative position of T5 (arXiv 1910.10683, section 2.1) with 32 classes and maximum 32.
    """
    half, far = BUCKETS // 2, distance.abs()
    # whole numbers at powers of 2 alone, whose logarithms are exact: floor is not off by one
    steps = 4 * torch.log2(far.clamp(min=NEAR) / NEAR)
    beyond = (NEAR + steps.floor().long()).clamp(max=half - 1)
    return torch.where(far < NEAR, far, beyond) + half * (distance > 0)


class Block(nn.Module):
    """A transformer block: attention within frames, to the text, along frames; feed-forward.

    `site` is the block's path in the network. Its attentions call taps under the names `site.self`,
    `site.cross` and `site.temporal`.
    """

    def __init__(self, site: str, dim: int, heads: int, context_dim: int, rotary: Rotary):
        super().__init__()
        head_dim = dim // heads
        self.cross_site = f"{site}.cross"
        self.norm1 = LayerNorm(dim)
        self.self = Attention(f"{site}.self", dim, heads, head_dim)
        self.norm2 = AddNorm(dim)
        self.cross = Attention(self.cross_site, dim, heads, head_dim, context_dim)
        self.norm_temporal = AddNorm(dim)
        self.temporal = RelativeAttention(f"{site}.temporal", dim, heads, head_dim, rotary)
        self.norm3 = AddNorm(dim)
        self.ff = GegluFeedForward(dim)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps tokens x (b f, h w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the cross-attention reads. taps: the hooks that the attentions
        call.
        """
        return self.after_self(*self.until_self(x, taps=taps), ctx, taps=taps)

    def until_self(self, x: Tensor, *, taps: Taps) -> tuple[Tensor, Tensor]:
        """Runs the first part of the block, the self-attention, on tokens x (b f, h w, c).

        Returns the residual sum and its normalization, of the same shape, which `after_self` takes.
        """
        return self.norm2(x, self.self(self.norm1(x), taps=taps))

    def after_self(self, x: Tensor, normed: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Runs the rest of the block and returns its output.

        x, normed: the two tensors that `until_self` returned, (b f, h w, c) like the output.
        """
        x, normed = self.norm_temporal(x, self._cross_attend(normed, ctx, taps=taps))
        clip = rearrange(normed, "(b f) n c -> b f n c", f=ctx.frames)
        x, normed = self.norm3(x, self.temporal(clip, taps=taps).reshape(x.shape))
        return x + self.ff(normed)

    def _cross_attend(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        # all frames of a video read the same text: one sequence of f h w queries per video
        queries = rearrange(x, "(b f) n c -> b (f n) c", f=ctx.frames)
        context = ctx.context[self.cross_site]
        return self.cross(queries, context, taps=taps).reshape(x.shape)


class Transformer(nn.Module):
    """Norm, projection, `Block` on the h w tokens of each frame, projection; + input.

    Statistics of the norm are those of single frames. `site`: the module's path in the network.
    """

    def __init__(
        self,
        site: str,
        channels: int,
        *,
        heads: int,
        context_dim: int,
        groups: int,
        rotary: Rotary,
    ):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.block = Block(f"{site}.block", channels, heads, context_dim, rotary)
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Maps features x (b f, h, w, c) of b videos with f frames to the same shape.

        ctx: holds the context that the block reads. taps: the hooks that its attentions call.
        """
        return self.add_to(x, self.block(self.tokens(x), ctx, taps=taps))

    def tokens(self, x: Tensor) -> Tensor:
        """Normalizes and projects features x (b f, h, w, c) to the block's input (b f, h w, c)."""
        return self.proj_in(self.norm(x).flatten(1, 2))

    def add_to(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Projects the block's output (b f, h w, c) back and adds it to x (b f, h, w, c)."""
        return x + self.proj_out(tokens).reshape(x.shape)
