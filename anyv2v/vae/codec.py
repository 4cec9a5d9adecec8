"""The interface of autoencoders for clips, `LatentCodec`, and one that works image by image."""

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
    """An autoencoder for clips, which encodes and decodes them piece by piece.

    The memory that a codec needs does not grow with the length of a clip. Latents of a clip are
    (1, c, f', h', w'); the first latent frame encodes the clip's first frame alone.
    """

    @property
    def channels(self) -> int:
        """Number of channels of the latents, c."""
        ...

    @property
    def spatial_compression(self) -> int:
        """Number of pixels per latent, in height and in width."""
        ...

    @property
    def size_multiple(self) -> int:
        """The number of pixels that must divide width and height of a frame.

        The number is `spatial_compression`, or a multiple of it if the diffusion network takes
        several latents as one token.
        """
        ...

    @property
    def encoder(self) -> nn.Module:
        """The network that only encoding uses, which may be offloaded while latents are decoded."""
        ...

    @property
    def frames_per_latent(self) -> int:
        """The number of frames that each latent frame after the first stands for."""
        ...

    def check_frames(self, frames: int) -> int:
        """Returns `frames` if the codec can encode a clip of that many frames.

        Raises InputError otherwise; the message says which nearby numbers are possible.
        """
        ...

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the shape (c, f', h', w') of the latents of a clip.

        frames: number of frames of the clip. height, width: size of the frames in pixels.
        """
        ...

    def frames_of(self, latent_frames: int) -> int:
        """Returns the number of frames to which `latent_frames` latent frames are decoded."""
        ...

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that the activations of a piece need.

        A piece is the smallest part of a clip that the codec encodes or decodes at once. height,
        width: size of the frames in pixels.
        """
        ...

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encodes uint8 frames (f, h, w, 3), yielding latents of consecutive pieces of the clip.

        Each piece is float32 (1, c, k, h', w'): scaled means of the posterior, or samples from it
        if there is a generator. at_once: number of frames to encode together, if the codec has a
        choice. The frames may be meta tensors, from which a run's cost is predicted.
        """
        ...

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Decodes scaled latents (1, c, f', h', w'), yielding consecutive pieces of the clip.

        Each piece is pixels (k, 3, h, w), nominally in [-1, 1] and not clamped, of any float dtype.
        at_once: number of latent frames to decode together, if the codec has a choice.
        """
        ...

    def meta_copy(self, device: torch.device) -> LatentCodec:
        """Returns a copy of the codec on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        ...


@dataclass(frozen=True)
class ImageCodec:
    """A codec that encodes every frame of a clip by itself, with an image autoencoder.

    It implements `LatentCodec`.
    """

    vae: Autoencoder
    """The image autoencoder."""

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return self.vae.config.latent_channels

    @property
    def spatial_compression(self) -> int:
        """Number of pixels per latent, in height and in width."""
        return self.vae.config.spatial_compression

    @property
    def size_multiple(self) -> int:
        """The number of pixels that must divide a frame's sides, equal to `spatial_compression`."""
        return self.spatial_compression

    @property
    def encoder(self) -> nn.Module:
        """The network that only encoding uses, which may be offloaded while latents are decoded."""
        return self.vae.encoder

    @property
    def frames_per_latent(self) -> int:
        """Returns 1: every frame has a latent frame of its own."""
        return 1

    def check_frames(self, frames: int) -> int:
        """Returns `frames`: a clip may have any number of frames."""
        return frames

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the shape (c, frames, h', w') of a clip's latents; height and width in pixels."""
        s = self.spatial_compression
        return self.channels, frames, height // s, width // s

    def frames_of(self, latent_frames: int) -> int:
        """Returns `latent_frames`: each latent frame is decoded to one frame."""
        return latent_frames

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that the activations of one frame need.

        height, width: size of the frame in pixels.
        """
        return self.vae.activation_bytes(height, width)

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encodes uint8 frames (f, h, w, 3), yielding latents of consecutive pieces of the clip.

        Each piece is float32 (1, c, k, h', w'), with `at_once` frames or, in the last piece, fewer:
        scaled means of the posterior. With a generator, pieces are single frames, sampled from the
        posterior.
        """
        # samples are drawn for one frame after the other, as the original draws them
        for chunk in frames.split(at_once if generator is None else 1):
            pixels = pixels_of(chunk).to(self._weight.device, self._weight.dtype)
            yield self.vae.encode(pixels, generator).float().transpose(0, 1)[None]

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Decodes scaled latents (1, c, f, h', w'), yielding consecutive pieces of the clip.

        Each piece is pixels (k, 3, h, w), nominally in [-1, 1] and not clamped, in the dtype of the
        weights, with `at_once` frames or, in the last piece, fewer.
        """
        images = latents[0].transpose(0, 1).to(self._weight.device, self._weight.dtype)
        for chunk in images.split(at_once):
            yield self.vae.decode(chunk)

    def meta_copy(self, device: torch.device) -> ImageCodec:
        """Returns a copy of the codec on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        return replace(self, vae=meta_copy(self.vae, device))

    @property
    def _weight(self) -> Tensor:
        # a weight of the decoder, which stays on the device even if the encoder is offloaded
        return self.vae.post_quant_conv.weight
