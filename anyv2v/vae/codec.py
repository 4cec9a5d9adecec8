"""The interface to autoencoders of clips, and its implementation by an image autoencoder."""

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
    """An autoencoder of clips, whose memory does not grow with their length.

    Latents are (1, c, f', h', w'). The first latent frame encodes the first frame alone.
    """

    @property
    def channels(self) -> int:
        """Channels of the latents, c."""
        ...

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, in height and in width."""
        ...

    @property
    def size_multiple(self) -> int:
        """The number of pixels that must divide both sides of a frame.

        It is `spatial_compression`, or a multiple of it where a network takes several latents as
        one token.
        """
        ...

    @property
    def encoder(self) -> nn.Module:
        """The part of the autoencoder that decoding does not need."""
        ...

    def check_frames(self, frames: int) -> int:
        """Returns `frames` if a clip may have that many.

        Raises InputError otherwise, with the nearest numbers that work.
        """
        ...

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the shape (c, f', h', w') of a clip's latents; height and width in pixels."""
        ...

    def frames_of(self, latent_frames: int) -> int:
        """Returns how many frames that many latent frames decode to."""
        ...

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound, in bytes, of the memory for the smallest piece of a clip.

        The weights are not counted. height, width: of the frames, in pixels.
        """
        ...

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encodes uint8 frames (f, h, w, 3), yielding float32 pieces (1, c, k, h', w') along time.

        The latents are scaled means of the posterior or, with a generator, samples from it. A codec
        that can choose encodes `at_once` frames together. The frames may hold no data, as they do
        when a run's cost is predicted.
        """
        ...

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Decodes latents (1, c, f', h', w'), yielding pixels (k, 3, h, w), about [-1, 1]."""
        ...

    def meta_copy(self, device: torch.device) -> LatentCodec:
        """Returns a copy of the codec on `device` whose weights hold no data."""
        ...


@dataclass(frozen=True)
class ImageCodec:
    """An autoencoder of images that encodes every frame by itself; see `LatentCodec`."""

    vae: Autoencoder

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.vae.config.latent_channels

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, in height and in width."""
        return self.vae.config.spatial_compression

    @property
    def size_multiple(self) -> int:
        """The number of pixels that must divide both sides of a frame: one latent."""
        return self.spatial_compression

    @property
    def encoder(self) -> nn.Module:
        """The part of the autoencoder that decoding does not need."""
        return self.vae.encoder

    def check_frames(self, frames: int) -> int:
        """Returns `frames`: any number will do."""
        return frames

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the shape (c, f, h', w') of a clip's latents; height and width in pixels."""
        s = self.spatial_compression
        return self.channels, frames, height // s, width // s

    def frames_of(self, latent_frames: int) -> int:
        """Returns `latent_frames`: each decodes to one frame."""
        return latent_frames

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound, in bytes, of the memory for one frame, without the weights."""
        return self.vae.activation_bytes(height, width)

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encodes frames (f, h, w, 3), yielding latents (1, c, k, h', w'), k being `at_once`."""
        # samples are drawn for one frame after the other, as the original draws them
        for chunk in frames.split(at_once if generator is None else 1):
            pixels = pixels_of(chunk).to(self._weight.device, self._weight.dtype)
            yield self.vae.encode(pixels, generator).float().transpose(0, 1)[None]

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Decodes latents (1, c, f, h', w'), yielding pixels (k, 3, h, w), k being `at_once`."""
        images = latents[0].transpose(0, 1).to(self._weight.device, self._weight.dtype)
        for chunk in images.split(at_once):
            yield self.vae.decode(chunk)

    def meta_copy(self, device: torch.device) -> ImageCodec:
        """Returns a copy of the codec on `device` whose weights hold no data."""
        return replace(self, vae=meta_copy(self.vae, device))

    @property
    def _weight(self) -> Tensor:
        # a weight of the decoder, which stays on the device even if the encoder is offloaded
        return self.vae.post_quant_conv.weight
