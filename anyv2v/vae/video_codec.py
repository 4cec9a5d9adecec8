"""A latent codec with a causal video autoencoder, which streams clips through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.media.image import pixels_of
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.causal import Past
from anyv2v.vae.video_autoencoder import VideoAutoencoder


@dataclass(frozen=True)
class VideoCodec:
    """A codec that encodes a clip's first frame alone and then groups of t frames, in order.

    Each group becomes one latent frame, which depends on the frames before but on none after. A
    latent frame is the smallest piece, and always the piece: what is computed does not depend on
    how much memory is free. It implements `LatentCodec`.
    """

    vae: VideoAutoencoder
    """The video autoencoder, whose `temporal_compression` is t."""
    latents_per_token: int
    """Number of latents, in height and in width, that the diffusion network takes as one token."""

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
        """The number of pixels that must divide a frame's sides: those of a token."""
        return self.spatial_compression * self.latents_per_token

    @property
    def encoder(self) -> nn.Module:
        """The network that only encoding uses, which may be offloaded while latents are decoded."""
        return self.vae.encoder

    @property
    def frames_per_latent(self) -> int:
        """The number of frames that each latent frame after the first stands for, t."""
        return self.vae.config.temporal_compression

    def check_frames(self, frames: int) -> int:
        """Returns `frames` if the number is 1 more than a multiple of t.

        Raises InputError, which names the nearest numbers that are, otherwise.
        """
        return checks.grouped("frames", frames, self.vae.config.temporal_compression)

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the shape (c, f', h', w') of a clip's latents; height and width in pixels."""
        s, t = self.spatial_compression, self.vae.config.temporal_compression
        return self.channels, 1 + (frames - 1) // t, height // s, width // s

    def frames_of(self, latent_frames: int) -> int:
        """Returns the number of frames to which `latent_frames` latent frames are decoded."""
        return 1 + self.vae.config.temporal_compression * (latent_frames - 1)

    def activation_bytes(self, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that the activations of a piece need.

        It includes what is remembered of the pieces before, and is the same for encoding and for
        decoding. height, width: size of the frames in pixels.
        """
        return self.vae.activation_bytes(height, width)

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encodes uint8 frames (f, h, w, 3), yielding one latent frame after the other.

        Each is float32 (1, c, 1, h', w'): normalized means of the posterior, or samples from it if
        there is a generator. at_once: has no effect. Raises InputError if `check_frames` does.
        """
        t = self.vae.config.temporal_compression
        groups = (self.check_frames(len(frames)) - 1) // t
        past: Past = {}
        for group in frames.split([1] + [t] * groups):
            pixels = pixels_of(group).to(self._weight.device, self._weight.dtype)
            mean, log_variance = self.vae.posterior(pixels.transpose(0, 1)[None], past)
            latents = mean.float()
            if generator is not None:
                noise = torch.randn(
                    latents.shape, generator=generator, device=generator.device, dtype=torch.float32
                )
                latents = latents + torch.exp(0.5 * log_variance.float()) * noise.to(latents)
            yield self.vae.normalize(latents)

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Decodes normalized latents (1, c, f', h', w'), yielding the frames of each latent frame.

        The first are pixels (1, 3, h, w), the others (t, 3, h, w), nominally in [-1, 1] and not
        clamped, in float32 or float64. at_once: has no effect.
        """
        past: Past = {}
        for frame in latents.split(1, dim=2):
            pixels = self.vae.decode(frame.to(self._weight.device), past)
            # pixels are brought to 0..1 next, where bfloat16 is no finer than levels of a frame
            wide = torch.promote_types(pixels.dtype, torch.float32)
            yield pixels[0].transpose(0, 1).to(wide)

    def meta_copy(self, device: torch.device) -> VideoCodec:
        """Returns a copy of the codec on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        return replace(self, vae=meta_copy(self.vae, device))

    @property
    def _weight(self) -> Tensor:
        # a weight of the decoder, which stays on the device even if the encoder is offloaded
        return self.vae.post_quant_conv.weight
