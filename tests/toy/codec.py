"""The toy's codec: means over four frames and over squares of four pixels, and two matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyv2v.errors import InputError
from anyv2v.media.image import pixels_of
from anyv2v.runtime.meta import meta_copy

CHANNELS, PATCH, GROUP = 4, 4, 4
"""Of the latents; pixels per latent; frames per latent frame, but for the first, which is alone."""
MULTIPLE = 12
"""Three latents: what the network takes as one token."""


class Autoencoder(nn.Module):
    """Colors to latents, and a latent frame to the colors of each of its frames."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, CHANNELS)
        self.decoder = nn.Linear(CHANNELS, GROUP * 3)
        self.spread = nn.Parameter(torch.empty(CHANNELS))
        """Standard deviation of the posterior."""


@dataclass(frozen=True)
class ToyCodec:
    net: Autoencoder

    channels = CHANNELS
    spatial_compression = PATCH
    size_multiple = MULTIPLE
    frames_per_latent = GROUP

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    def check_frames(self, frames: int) -> int:
        if frames % GROUP == 1:
            return frames
        below = frames - (frames - 1) % GROUP
        near = [n for n in (below, below + GROUP) if n >= 1]
        raise InputError(
            f"frames: {frames} is not 1 more than a multiple of {GROUP}; "
            f"the nearest that work are {' and '.join(map(str, near))}"
        )

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return CHANNELS, 1 + (frames - 1) // GROUP, height // PATCH, width // PATCH

    def frames_of(self, latent_frames: int) -> int:
        return 1 + GROUP * (latent_frames - 1)

    def activation_bytes(self, height: int, width: int) -> int:
        return GROUP * 3 * 4 * height * width

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        self.check_frames(len(frames))
        weight = self.net.decoder.weight
        for group in (frames[:1], *frames[1:].split(GROUP)):
            if not len(group):
                continue
            pixels = pixels_of(group).to(weight.device, weight.dtype)
            mean = nn.functional.avg_pool2d(pixels, PATCH).mean(0)
            latents = self.net.encoder(mean.movedim(0, -1)).movedim(-1, 0)
            if generator is not None:
                noise = torch.randn(latents.shape, generator=generator).to(weight.device)
                latents = latents + self.net.spread[:, None, None] * noise
            yield latents.float()[None, :, None]

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        weight = self.net.decoder.weight
        for i, frame in enumerate(latents[0].to(weight.device, weight.dtype).unbind(1)):
            colors = self.net.decoder(frame.movedim(0, -1)).unflatten(-1, (GROUP, 3))
            pixels = colors.permute(2, 3, 0, 1)
            pixels = pixels.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
            # the first latent frame is of one frame, the last of a group
            yield pixels if i else pixels[-1:]

    def meta_copy(self, device: torch.device) -> ToyCodec:
        return replace(self, net=meta_copy(self.net, device))
