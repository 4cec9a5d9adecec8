"""Everything that steers the I2VGen-XL UNet but the timestep (arXiv 2311.04145, section 3).

None of it depends on the timestep, so it is computed once and kept as `Conditions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
    """What one or several branches are steered by, stacked along dim 0."""

    context: Tensor
    """(b, 77 + 64 + 4, c): tokens of the text, of the first frame's latents, of its CLIP image."""
    latents: Tensor
    """(b, 4, f, h, w): channels that stand beside the sample's."""
    fps: Tensor
    """(b, t): embedding of the frame rate, added to that of the timestep."""

    @staticmethod
    def stack(branches: Sequence[Conditions]) -> Conditions:
        """Rows of all branches, in order."""
        return Conditions(
            *(torch.cat([getattr(b, f.name) for b in branches]) for f in fields(Conditions))
        )


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
        """x (b, f, h w, c) -> the same shape."""
        x = x + self.self(self.norm(x), taps=NO_TAPS)
        return x + self.ff(x)


class Conditioning(nn.Module):
    """Text, image latents, CLIP image embedding and frame rate -> `Conditions`."""

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
    ) -> Conditions:
        """text (b, n, c'), image_embedding (b, c'), image_latents (b, c, f, h, w), fps (b,)."""
        image_latents = image_latents.contiguous()
        first = self.latent_tokens(image_latents[:, :, 0].contiguous())
        latent_tokens = rearrange(first, "b c h w -> b (h w) c")
        image_tokens = self.image_tokens(image_embedding)
        image_tokens = rearrange(image_tokens, "b (m c) -> b m c", m=self.config.channels)
        rate = sinusoids(fps, self.config.widths[0]).to(text.dtype)
        return Conditions(
            context=torch.cat([text, latent_tokens, image_tokens], dim=1),
            latents=self._beside(image_latents),
            fps=self.fps(rate),
        )

    def _beside(self, image_latents: Tensor) -> Tensor:
        f, h = image_latents.shape[2:4]
        frames = self.latents(rearrange(image_latents, "b c f h w -> (b f) c h w").contiguous())
        tokens = self.temporal(rearrange(frames, "(b f) c h w -> b f (h w) c", f=f))
        return rearrange(tokens, "b f (h w) c -> b c f h w", h=h)
