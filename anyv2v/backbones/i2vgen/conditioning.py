"""The conditions of I2VGen-XL's UNet: text, first frame, frame rate (arXiv 2311.04145, section 3).

The conditions do not depend on the timestep, so they are encoded once per run and stored as
`Conditions`, with the keys and values that every cross-attention computes from the context.
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
    """What the UNet is conditioned on, for g branches of n samples.

    A sample is noisy latents with a first frame. Its branches, such as those of the negative prompt
    and of the prompt, differ only in their context, so that everything else is stored and computed
    once per sample.
    """

    context: Mapping[str, tuple[Tensor, Tensor]]
    """Site (path in the UNet) of each cross-attention -> key and value of the m context tokens
    there, (g, m, heads, d) each."""
    latents: Tensor
    """(n, c, f, h, w): the encoded first frame, which the UNet concatenates with the noisy latents
    along the channels."""
    fps: Tensor
    """(n, t): embedding of the frame rate, which is added to the embedding of the timestep."""
    samples: Tensor
    """(g,) int64: for each branch, the index of the sample that it belongs to."""

    @classmethod
    def stack(
        cls, branches: Sequence[Conditions], samples: Sequence[int] | None = None
    ) -> Conditions:
        """Stacks the conditions of single branches into those of a batch, in order.

        samples: for each branch, the index of the sample (noisy latents with a first frame) that it
        belongs to, numbered from 0 in order of appearance; None gives every branch a sample of its
        own. Branches of one sample must have the same first frame and frame rate.
        """
        samples = tuple(range(len(branches)) if samples is None else samples)
        firsts = [branches[samples.index(sample)] for sample in range(len(set(samples)))]
        return Conditions(
            {
                site: (
                    torch.cat([branch.context[site][0] for branch in branches]),
                    torch.cat([branch.context[site][1] for branch in branches]),
                )
                for site in branches[0].context
            },
            torch.cat([branch.latents for branch in firsts]),
            torch.cat([branch.fps for branch in firsts]),
            # here, because copying it to a GPU would make every forward pass wait
            torch.tensor(samples, device=firsts[0].latents.device),
        )

    def one_per_branch(self) -> Conditions:
        """Returns the same conditions with a separate sample for every branch, so that n = g."""
        own = torch.arange(len(self.samples), device=self.samples.device)
        return Conditions(self.context, self.latents[self.samples], self.fps[self.samples], own)


class LatentsFeedForward(nn.Module):
    """A feed-forward network: linear to 4 dim channels, exact GELU, linear back to `dim`."""

    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., dim) to the same shape."""
        return self.down(F.gelu(self.up(x)))


class LatentsTemporal(nn.Module):
    """A transformer layer that mixes encoded image latents along the frames.

    The attention has two heads of `channels` dims each. As in the original code, there is no norm
    before the feed-forward.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.self = TemporalAttention(None, channels, heads=2, head_dim=channels)
        self.ff = LatentsFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps latents x (b, f, h w, c), as channels-last tokens of f frames, to the same shape."""
        x = x + self.self(self.norm(x), taps=NO_TAPS)
        return x + self.ff(x)


class Conditioning(nn.Module):
    """The part of I2VGen-XL's UNet that encodes text, first frame and frame rate."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        c, context_dim, time_dim = config.channels, config.context_dim, config.time_dim
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
            nn.Conv2d(16 * c, context_dim, 3, stride=2, padding=1),
        )
        self.image_tokens = mlp(context_dim, time_dim, c * context_dim)
        self.fps = mlp(config.level_channels[0], time_dim)

    def forward(
        self, text: Tensor, image_embedding: Tensor, image_latents: Tensor, fps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes the conditions of b branches.

        text (b, n, c'): hidden states of the text encoder. image_embedding (b, c'): CLIP embedding
        of the first frame. image_latents (b, c, f, h, w): the first frame's latents, extended to a
        clip by `backbone.image_latents`. fps (b,): frames per second.

        Returns (context, latents, fps). The context (b, n + 64 + c, c') consists of the n text
        tokens, 64 tokens of the first frame's latents and c tokens of its CLIP embedding. The other
        two are as in `Conditions`.
        """
        image_latents = image_latents.contiguous()
        first = self.latent_tokens(image_latents[:, :, 0].contiguous())
        latent_tokens = rearrange(first, "b c h w -> b (h w) c")
        image_tokens = self.image_tokens(image_embedding)
        image_tokens = rearrange(image_tokens, "b (m c) -> b m c", m=self.config.channels)
        fps_embedding = sinusoids(fps, self.config.level_channels[0]).to(text.dtype)
        context = torch.cat([text, latent_tokens, image_tokens], dim=1)
        return context, self._encode_latents(image_latents), self.fps(fps_embedding)

    def _encode_latents(self, image_latents: Tensor) -> Tensor:
        f, h = image_latents.shape[2:4]
        frames = self.latents(rearrange(image_latents, "b c f h w -> (b f) c h w").contiguous())
        tokens = self.temporal(rearrange(frames, "(b f) c h w -> b f (h w) c", f=f))
        return rearrange(tokens, "b f (h w) c -> b c f h w", h=h)
