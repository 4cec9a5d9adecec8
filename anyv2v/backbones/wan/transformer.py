"""The transformer of Wan 2.2 (arXiv 2503.20314), on tokens in the grid of a clip.

Inside the network, features are (g, f, h, w, c): one token for each patch of the latents of each of
g branches (passes under different conditions). What is added up from block to block, the embedding
of the time and what is made of it, and all norms are float32 whatever dtype the weights have, as in
the original; matrix products other than those of the time have the dtype of the weights. Loaded in
half precision, the network keeps the weights of what is computed in float32 in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.wan.attention import CrossAttention, SelfAttention
from anyv2v.backbones.wan.conditioning import Conditions
from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.layers import (
    FeedForward,
    LayerNorm,
    PatchEmbedding,
    WideLinear,
    modulate,
    of_frames,
    wide,
)
from anyv2v.backbones.wan.precision import FLOAT32
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.nn.linear import Linear


@dataclass(frozen=True)
class ForwardContext:
    """The inputs that all blocks share in one forward pass."""

    modulation: Tensor
    """(g, f, 6, c), or (g, 1, 6, c) if it is the same for all frames; float32. What the timestep of
    a frame adds to shift, scale and gate of the self-attention and of the feed-forward network."""
    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site of each cross-attention -> key and value of the text there, (g, m, heads, d) each."""
    without_first: frozenset[str]
    """The kinds of sites whose injection leaves frame 0 out, see `Conditions.without_first`."""


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention, feed-forward network.

    Each of `attend`, `read` and `feed` adds one of them to the float32 tokens, in this order; they
    are called one by one, so that no caller holds the tokens that went into the block. `site` is
    the block's path in the network; `anyv2v.backbones.wan.sites` has the names of its sites.
    """

    def __init__(self, site: str, config: TransformerConfig):
        super().__init__()
        dim, heads, eps = config.dim, config.heads, config.eps
        self.eps = eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * dim**-0.5)
        self.self = SelfAttention(f"{site}.self", dim, heads, eps)
        self.norm_cross = LayerNorm(dim, eps)
        self.cross = CrossAttention(f"{site}.cross", dim, heads, eps, dim)
        self.ff = FeedForward(f"{site}.ff", dim, config.ff_dim)

    def attend(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Adds the self-attention to tokens x (g, f, h, w, c), where `taps` are called."""
        shift, scale, gate = self._modulation(ctx)[:3]
        y = self.self(
            modulate(x, shift, scale, self.eps).to(self.dtype),
            taps=taps,
            without_first=ctx.without_first,
        )
        return torch.addcmul(x, y.reshape(x.shape), of_frames(gate))

    def read(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Adds the cross-attention to tokens x (g, f, h, w, c), where `taps` are called."""
        assert self.cross.site is not None, "the context is found by the attention's site"
        context = ctx.context[self.cross.site]
        y = self.cross(self.norm_cross(x).to(self.dtype), context, taps=taps)
        return x + y.reshape(x.shape)

    def feed(self, x: Tensor, ctx: ForwardContext, *, taps: Taps) -> Tensor:
        """Adds the feed-forward network to tokens x (g, f, h, w, c), where `taps` are called."""
        shift, scale, gate = self._modulation(ctx)[3:]
        own_first = "hidden" in ctx.without_first
        y = self.ff(
            modulate(x, shift, scale, self.eps).to(self.dtype), taps=taps, own_first=own_first
        )
        return torch.addcmul(x, y, of_frames(gate))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return self.self.q.weight.dtype

    def _modulation(self, ctx: ForwardContext) -> tuple[Tensor, ...]:
        """Returns shift, scale and gate of self-attention and feed-forward, (g, f, c) each."""
        return (self.modulation.to(ctx.modulation.dtype) + ctx.modulation).unbind(2)


class Transformer(nn.Module):
    """Wan's transformer, which predicts the velocity, noise - clean, from latents and `Conditions`.

    `sites` has the names of the parts that call taps, in the order of the forward pass. Nothing in
    the network is sized by the number of frames.
    """

    float32 = FLOAT32

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config, dim = config, config.dim
        self.patch = PatchEmbedding(config.in_channels, dim, config.patch)
        self.time = nn.Sequential(WideLinear(config.time_dim, dim), nn.SiLU(), WideLinear(dim, dim))
        self.time_projection = WideLinear(dim, 6 * dim)
        self.text = nn.Sequential(Linear(config.text_dim, dim), nn.GELU("tanh"), Linear(dim, dim))
        self.block = nn.ModuleList(Block(f"block.{i}", config) for i in range(config.layers))
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) * dim**-0.5)
        area = config.patch[1] * config.patch[2]
        self.out = WideLinear(dim, area * config.out_channels)
        # modules are in the order of the forward pass
        self.sites = tuple(site for m in self.modules() for site in _sites(m))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks' matrix products."""
        block = self.block[0]
        assert isinstance(block, Block)
        return block.dtype

    def condition(self, text: Tensor) -> Conditions:
        """Computes everything that depends on the text alone, once for a whole run.

        text (b, m, text_dim): the encoded prompts of b branches. After the prompt's own vectors,
        zeros follow up to `config.text_tokens`, whether `text` holds them or not: as in the
        original, attention is paid to what the network makes of them. Each branch becomes a sample
        of its own, see `Conditions`. Raises InputError if m is larger than `config.text_tokens`.
        """
        missing = self.config.text_tokens - text.shape[1]
        if missing < 0:
            raise InputError(f"text: {text.shape[1]} vectors are over {self.config.text_tokens}")
        context = self.text(F.pad(text, (0, 0, 0, missing)))
        samples = torch.arange(len(text), device=text.device)
        modules = self.named_modules()
        read = {site: m.read(context) for site, m in modules if isinstance(m, CrossAttention)}
        return Conditions(read, samples)

    def forward(
        self, latents: Tensor, t: Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts the velocity (g, c, f, h, w), float32, for g branches of n samples.

        latents (n, c', f, h, w): those of the samples, in the network's dtype; with
        `config.clean_first_frame` their frame 0 is clean, and the prediction for it means nothing.
        t: the timesteps (n,) of the samples, 0 to 1000, or one without dims for all, in any number
        type. conditions: those of the g branches; see `Conditions.stack`. taps: the hooks to call
        at the sites. Raises InputError if the latents cannot be divided in patches, or there are
        more than `config.positions` of them along one axis.
        """
        self._check(latents)
        frames, samples = latents.shape[2], conditions.samples
        x = wide(self.patch(latents[samples]))
        rows = self._rows_of_frames(samples, len(latents), frames)
        time = self._embed_times(t.expand(len(latents)), x.dtype)
        modulation = self.time_projection(F.silu(time)).unflatten(-1, (6, -1))

        ctx = ForwardContext(modulation[rows], conditions.context, conditions.without_first)
        for block in self.block:
            assert isinstance(block, Block)
            for add in (block.attend, block.read, block.feed):
                x = add(x, ctx, taps=taps)

        shift, scale = (self.modulation.to(x.dtype) + time[rows][:, :, None]).unbind(2)
        x = self.out(modulate(x, shift, scale, self.config.eps))
        p, q, r = self.config.patch
        pattern = "g f h w (p q r c) -> g c (f p) (h q) (w r)"
        return rearrange(x, pattern, p=p, q=q, r=r).contiguous()

    def _check(self, latents: Tensor) -> None:
        sizes, patch = latents.shape[2:], self.config.patch
        if any(size % side for size, side in zip(sizes, patch, strict=True)):
            raise InputError(f"latents: {tuple(sizes)} are not whole patches of {patch}")
        most = max(size // side for size, side in zip(sizes, patch, strict=True))
        if most > self.config.positions:
            raise InputError(
                f"latents: {tuple(sizes)} have {most} patches along one axis, "
                f"more than {self.config.positions}"
            )

    def _embed_times(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeds the timesteps t (n,), and then timestep 0: (n + 1, c), of `dtype`."""
        t = torch.cat([t.double(), torch.zeros_like(t[:1], dtype=torch.float64)])
        return self.time(sinusoids(t, self.config.time_dim).to(dtype))

    def _rows_of_frames(self, samples: Tensor, count: int, frames: int) -> Tensor:
        """Returns which row of `_embed_times`, of `count` timesteps, each branch's frames get.

        samples: (g,). The result is int64 (g, f), or (g, 1) if it is the same for all frames.
        """
        own = samples[:, None]
        if not self.config.clean_first_frame:
            return own
        return torch.cat([torch.full_like(own, count), own.expand(-1, frames - 1)], dim=1)


def _sites(module: nn.Module) -> tuple[str, ...]:
    """The sites of a module: its path in the network, and further ones of a self-attention."""
    site = getattr(module, "site", None)
    further = (module.value_site, module.context_site) if isinstance(module, SelfAttention) else ()
    return (site, *further) if site else ()


def sinusoids(numbers: Tensor, dim: int) -> Tensor:
    """Embeds float64 numbers (b,) as (b, dim) float64: dim / 2 cosines, then sines.

    Those of `anyv2v.nn.embeddings` are float32, in which an angle near 1000 is off by 3e-5.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=numbers.dtype, device=numbers.device) / half
    angles = numbers[:, None] * 10000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
