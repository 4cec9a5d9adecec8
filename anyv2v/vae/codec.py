"""Frames to latents and back, whatever the autoencoder does with time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from anyv2v.media.image import pixels_of
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import Autoencoder


class LatentCodec(Protocol):
    """An autoencoder of clips, in memory that does not grow with their length.

    The first latent frame is what the first frame alone is encoded to.
    """

    channels: int
    """Of the latents."""
    factor: int
    """Pixels per latent, along both sides of a frame."""
    multiple: int
    """What both sides of a frame, in pixels, are multiples of: `factor`, or what a network takes as
    one token."""
    encoder: nn.Module
    """What decoding does not need."""

    def check_frames(self, frames: int) -> int:
        """`frames` if a clip may have as many; InputError with the nearest numbers that work."""

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, f', h', w') of the latents of so many frames of that size in pixels."""

    def frames_of(self, latent_frames: int) -> int:
        """How many frames so many latent frames are decoded to."""

    def activation_bytes(self, height: int, width: int) -> int:
        """What the least piece of frames of that size needs at least, besides the weights."""

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """uint8 frames (f, h, w, 3) -> pieces (1, c, k, h', w') of their latents along time.

        Scaled posterior means, float32; with a generator, samples of the posterior. `at_once`: how
        many frames may be computed together, for codecs that can choose. The frames may be without
        data: so costs are predicted.
        """

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Scaled latents (1, c, f', h', w') -> pieces (k, 3, h, w) of the pixels, about [-1, 1]."""

    def blank(self, device: torch.device) -> LatentCodec:
        """The same without data."""


@dataclass(frozen=True)
class ImageCodec:
    """An image autoencoder, frame by frame."""

    vae: Autoencoder

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def factor(self) -> int:
        return self.vae.config.factor

    @property
    def multiple(self) -> int:
        return self.factor

    @property
    def encoder(self) -> nn.Module:
        return self.vae.encoder

    def check_frames(self, frames: int) -> int:
        return frames

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return self.channels, frames, height // self.factor, width // self.factor

    def frames_of(self, latent_frames: int) -> int:
        return latent_frames

    def activation_bytes(self, height: int, width: int) -> int:
        return self.vae.activation_bytes(height, width)

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        # samples are drawn for one frame after the other, as the original draws them
        for chunk in frames.split(at_once if generator is None else 1):
            pixels = pixels_of(chunk).to(self._weight.device, self._weight.dtype)
            yield self.vae.encode(pixels, generator).float().transpose(0, 1)[None]

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        each = latents[0].transpose(0, 1).to(self._weight.device, self._weight.dtype)
        for chunk in each.split(at_once):
            yield self.vae.decode(chunk)

    def blank(self, device: torch.device) -> ImageCodec:
        return replace(self, vae=meta_copy(self.vae, device))

    @property
    def _weight(self) -> Tensor:
        # the decoder's side, which never waits on the host
        return self.vae.post_quant_conv.weight
