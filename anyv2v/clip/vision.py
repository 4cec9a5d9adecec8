"""CLIP's vision tower: an image to one vector."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyv2v.clip.layers import EncoderLayer
from anyv2v.errors import InputError


@dataclass(frozen=True)
class VisionConfig:
    image_size: int  # pixels, both sides
    patch_size: int  # pixels, both sides
    width: int
    heads: int
    layers: int
    mlp_width: int
    activation: str  # "gelu" or "quick_gelu"
    norm_eps: float
    projection_width: int


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.image_size = config.image_size
        # a remainder at the right and bottom edge is not seen, as in the original
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(
            3, width, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + patches, width)
        self.pre_norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            EncoderLayer(
                width, config.heads, config.mlp_width, config.activation, eps, causal=False
            )
            for _ in range(config.layers)
        )
        self.post_norm = nn.LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, config.projection_width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The image's embedding: the class token, normed and projected into the shared space.

        pixels (b, 3, s, s), normalised, in the weights' dtype, s the config's `image_size`
        -> (b, projection_width). Raises InputError for another shape.
        """
        size = self.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise InputError(
                f"pixels of shape {tuple(pixels.shape)} cannot be read: want (b, 3, {size}, {size})"
            )
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = self.pre_norm(x + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.post_norm(x[:, 0]))
