"""Everything that steers the I2VGen-XL UNet but the timestep (arXiv 2311.04145, section 3).

None of it depends on the timestep, so it is computed once and kept as `Conditions`, with the keys
and values that every cross-attention makes of the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.injection.taps import NO_TAPS
from anyv2v.nn.attention import TemporalAttention
from anyv2v.nn.embeddings import mlp, sinusoids


@dataclass(frozen=True)
class Conditions:
    """What g branches of n samples are steered by.

    A sample is latents with a first frame. Its branches differ only in their context, so what is
    equal for them is kept, and computed, once.
    """

    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site of each cross-attention -> key and value, (g, m, heads, d) each."""
    latents: Tensor
    """(n, c, f, h, w): channels that stand beside the sample's."""
    fps: Tensor
    """(n, t): embedding of the frame rate, added to that of the timestep."""
    samples: Tensor
    """(g,) int64: which of the n samples each is a branch of."""

    @staticmethod
    def stack(branches: Sequence[Conditions], samples: Sequence[int] | None = None) -> Conditions:
        """Of single branches, in order; `samples`: which of the latents each is a branch of.

        They count from 0 in order of appearance, and branches of one sample must have been made of
        the same first frame. Left out, every branch has latents of its own.
        """
        samples = tuple(range(len(branches)) if samples is None else samples)
        firsts = [branches[samples.index(sample)] for sample in range(len(set(samples)))]
        return Conditions(
            {
                site: tuple(
                    torch.cat(pieces)
                    for pieces in zip(*(b.context[site] for b in branches), strict=True)
                )
                for site in branches[0].context
            },
            torch.cat([b.latents for b in firsts]),
            torch.cat([b.fps for b in firsts]),
            # here, because copying it to a GPU would make every forward pass wait
            torch.tensor(samples, device=firsts[0].latents.device),
        )

    def apart(self) -> Conditions:
        """The same with a sample for every branch."""
        own = torch.arange(len(self.samples), device=self.samples.device)
        return Conditions(self.context, self.latents[self.samples], self.fps[self.samples], own)


class LatentsFeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class LatentsTemporal(nn.Module):
    """Mixes the image latents along the frames: two heads as wide as the latents have channels.

    The feed-forward has no norm before it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.self = TemporalAttention(None, channels, 2, channels)
        self.ff = LatentsFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """X (b, f, h w, c) -> the same shape."""
        x = x + self.self(self.norm(x), taps=NO_TAPS)
        return x + self.ff(x)


class Conditioning(nn.Module):
    """Encodes image latents, CLIP image embedding and frame rate."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        c, width, time_width = config.channels, config.context_width, config.time_width
        self.config = config
        self.latents = nn.Sequential(
            nn.Conv2d(c, 4 * c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(4 * c, 4 * c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(4 * c, c, 3, padding=1),
        )
        self.temporal = LatentsTemporal(c)
        self.latent_tokens = nn.Sequential(
            nn.Conv2d(c, 8 * c, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(32),  # enlarges what is smaller
            nn.Conv2d(8 * c, 16 * c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16 * c, width, 3, stride=2, padding=1),
        )
        self.image_tokens = mlp(width, time_width, c * width)
        self.fps = mlp(config.widths[0], time_width)

    def forward(
        self, text: Tensor, image_embedding: Tensor, image_latents: Tensor, fps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text (b, n, c'), image_embedding (b, c'), image_latents (b, c, f, h, w), fps (b,).

        Gives the context (b, n + 64 + 4, c'), tokens of the text, of the first frame's latents
        and of its CLIP image; `Conditions.latents`; and `Conditions.fps`.
        """
        image_latents = image_latents.contiguous()
        first = self.latent_tokens(image_latents[:, :, 0].contiguous())
        latent_tokens = rearrange(first, "b c h w -> b (h w) c")
        image_tokens = self.image_tokens(image_embedding)
        image_tokens = rearrange(image_tokens, "b (m c) -> b m c", m=self.config.channels)
        rate = sinusoids(fps, self.config.widths[0]).to(text.dtype)
        context = torch.cat([text, latent_tokens, image_tokens], dim=1)
        return context, self._beside(image_latents), self.fps(rate)

    def _beside(self, image_latents: Tensor) -> Tensor:
        f, h = image_latents.shape[2:4]
        frames = self.latents(rearrange(image_latents, "b c f h w -> (b f) c h w").contiguous())
        tokens = self.temporal(rearrange(frames, "(b f) c h w -> b f (h w) c", f=f))
        return rearrange(tokens, "b f (h w) c -> b c f h w", h=h)
