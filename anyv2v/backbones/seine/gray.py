"""The latents of gray frames, by which SEINE is told which frames of a clip are to be made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v.nn.resnet import GroupNorm
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig


class FlatGroupNorm(GroupNorm):
    """A group normalization that is exact for features that are the same at all positions.

    On a CPU, PyTorch adds the squares of channels-last features one after another in float32. That
    loses digits where all are alike, most where the deviation of a group is small. It adds those of
    channels-first features in a better order.
    """

    def forward(self, input: Tensor, *, silu: bool = False, shift: Tensor | None = None) -> Tensor:
        """Normalizes the input (b, ..., c), and applies SiLU to the result if `silu`.

        shift: see `GroupNorm`; the features of an autoencoder have none on a CPU.
        """
        if input.device.type != "cpu" or shift is not None:
            return super().forward(input, silu=silu, shift=shift)
        channels_first = input.movedim(-1, 1).contiguous()
        y = F.group_norm(channels_first, self.num_groups, self.weight, self.bias, self.eps)
        y = y.movedim(1, -1).contiguous()
        return F.silu(y) if silu else y


class GrayAutoencoder(Autoencoder):
    """The image autoencoder of latent diffusion, whose encoder is exact for gray frames, too."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        for module in self.encoder.modules():
            if isinstance(module, GroupNorm):
                # the same parameters and the same normalization, computed in another way
                module.__class__ = FlatGroupNorm

    def encode_gray(self, height: int, width: int) -> Tensor:
        """Returns the scaled latents (1, c, height, width) of a gray frame, for latents this large.

        All its pixels are 0 in the encoder's range -1 to 1, which no 8-bit color is.
        """
        weight, s = self.quant_conv.weight, self.config.spatial_compression
        pixels = torch.zeros(
            1, self.config.channels, s * height, s * width, dtype=weight.dtype, device=weight.device
        )
        return self.encode(pixels)
