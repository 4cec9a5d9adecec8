"""UMT5's encoder, which maps token ids to one vector per token.

UMT5 (arXiv 2304.09151) is T5 (arXiv 1910.10683, version 1.1) in many languages, with a relative
position bias in every layer. Weights may be in half precision; between the linear layers the
computation is in float32: the sums of the layers, the norms, and attention, whose scores are not
scaled down and are large. The original of Wan (wan/modules/t5.py) rounds the sums and the scores to
the weights' dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.nn.linear import Linear


@dataclass(frozen=True)
class UMT5Config:
    """Section "text" of a weights folder's config.json: the sizes of the text encoder."""

    vocab_size: int
    """Number of token embeddings, that is, of possible token ids."""
    tokens: int
    """The greatest number of tokens of a text, and the number of vectors in every embedding."""
    hidden_size: int = field(metadata={"key": "width"})
    """Length of a token's vector."""
    heads: int
    """Number of heads of every attention."""
    head_dim: int
    """Length of the queries, keys and values of one head."""
    layers: int
    """Number of transformer layers."""
    intermediate_size: int = field(metadata={"key": "mlp_width"})
    """Length of the vectors between the linear layers of an MLP."""
    buckets: int
    """Number of relative position biases of a head, for distances in both directions."""
    max_distance: int
    """Distance in tokens from which on all distances have the same bias."""
    norm_eps: float
    """Epsilon of every RMS norm, between 0 and 1."""


class RMSNorm(nn.RMSNorm):
    """RMS normalization (arXiv 1910.07467) in float32 or better, whose result has `weight`'s dtype.

    There is no bias and no subtraction of a mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., c), float32 or better, to the same shape in the weights' dtype."""
        normed = F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return normed.to(self.weight.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with a relative position bias and without a scale."""

    def __init__(self, hidden_size: int, heads: int, head_dim: int, buckets: int):
        """Builds an attention of `heads` heads of `head_dim` dims on tokens of `hidden_size`.

        buckets: number of relative position biases of a head, see `relative_buckets`.
        """
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.q = Linear(hidden_size, inner, bias=False)
        self.k = Linear(hidden_size, inner, bias=False)
        self.v = Linear(hidden_size, inner, bias=False)
        self.out = Linear(inner, hidden_size, bias=False)
        self.relative_bias = nn.Embedding(buckets, heads)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        """Maps tokens x (b, n, hidden_size) to the same shape.

        buckets: (n, n) int64 of `relative_buckets`. All tokens attend to all.
        """
        wide = wide_dtype(x.dtype)
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).to(wide)
            for linear in (self.q, self.k, self.v)
        )
        bias = self.relative_bias.weight.to(wide)[buckets].permute(2, 0, 1)
        weights = (q @ k.mT + bias).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(-2).to(x.dtype))


class MLP(nn.Module):
    """A gated perceptron (arXiv 2002.05202): down(GELU(gate(x)) * up(x)), GELU by its tanh form."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        """Builds a perceptron from `hidden_size` to `intermediate_size` and back."""
        super().__init__()
        self.gate = Linear(hidden_size, intermediate_size, bias=False)
        self.up = Linear(hidden_size, intermediate_size, bias=False)
        self.down = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., hidden_size) to the same shape."""
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer: x + attention(norm(x)), then the same with an MLP."""

    def __init__(self, config: UMT5Config):
        super().__init__()
        width = config.hidden_size
        self.norm1 = RMSNorm(width, eps=config.norm_eps)
        self.self = SelfAttention(width, config.heads, config.head_dim, config.buckets)
        self.norm2 = RMSNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.intermediate_size)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        """Maps tokens x (b, n, hidden_size), float32 or better, to the same shape and dtype.

        buckets: (n, n) int64 of `relative_buckets`.
        """
        x = x + self.self(self.norm1(x), buckets)
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """UMT5's encoder: a transformer that maps the tokens of a text to vectors."""

    def __init__(self, config: UMT5Config):
        """Builds the encoder. Raises InputError if values of the config do not make one."""
        super().__init__()
        if not 0 < config.norm_eps < 1:
            raise InputError(f"norm_eps {config.norm_eps} is not between 0 and 1")
        if config.buckets % 4 or config.max_distance <= config.buckets // 4:
            raise InputError(
                f"buckets {config.buckets} are not a multiple of 4, or max_distance "
                f"{config.max_distance} is not over a quarter of them"
            )
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Maps token ids (b, n) int64 to embeddings (b, tokens, hidden_size) in the weights' dtype.

        The ids are those of whole texts, with the end token and without padding; n is at most
        the config's `tokens`. The vectors after the n of the text are zero, as Wan's networks take
        them. Wan's pipelines let the encoder read padding, mask it, and drop its vectors, which
        gives the same. Raises InputError if the ids have another shape.
        """
        tokens = self.config.tokens
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= tokens:
            raise InputError(
                f"ids of shape {tuple(ids.shape)} cannot be read: want (b, n), n from 1 to {tokens}"
            )
        n = ids.shape[1]
        buckets = relative_buckets(n, self.config.buckets, self.config.max_distance)
        buckets = buckets.to(ids.device)
        x = self.token_embedding(ids)
        x = x.to(wide_dtype(x.dtype))
        for layer in self.layers:
            x = layer(x, buckets)
        return F.pad(self.final_norm(x), (0, 0, 0, tokens - n))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float32 for half precision and float32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def relative_buckets(n: int, buckets: int, max_distance: int) -> Tensor:
    """Returns for each query and key of n tokens the index of their bias, (n, n) int64, on the CPU.

    One half of the buckets is for keys up to the query itself, the other for keys after it. In each
    half, the first half is for one distance each; the buckets after these hold ranges of
    distances whose ends grow geometrically up to `max_distance`, and the last one all beyond
    (Mesh TensorFlow, transformer_layers.py, `_relative_position_bucket`). The logarithm is
    float32 and computed on the CPU, so that a distance is in the same bucket everywhere.
    """
    position = torch.arange(n, device="cpu")
    offset = position - position[:, None]
    distance = offset.abs()
    half, exact = buckets // 2, buckets // 4
    growth = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    # below `exact` the logarithm is negative or infinite, and not used
    far = exact + (growth * (half - exact)).clamp(0, half - exact - 1).long()
    return torch.where(distance < exact, distance, far) + half * (offset > 0)
