"""CLIP's image encoder, which maps an image to one vector."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from anyv2v.clip.layers import EncoderLayer
from anyv2v.errors import InputError


@dataclass(frozen=True)
class VisionConfig:
    """Section "vision" of a weights folder's config.json: the sizes of the image encoder."""

    image_size: int
    """Height and width of the input image in pixels."""
    patch_size: int
    """Height and width in pixels of a patch, which becomes one token."""
    hidden_size: int = field(metadata={"key": "width"})
    """Length of a token's vector."""
    heads: int
    """Number of heads of every attention; must divide `hidden_size`."""
    layers: int
    """Number of transformer layers."""
    intermediate_size: int = field(metadata={"key": "mlp_width"})
    """Length of the vectors between the two linear layers of an MLP."""
    activation: str
    """Activation of the MLPs, "gelu" or "quick_gelu"."""
    norm_eps: float
    """Epsilon of every layer normalization, between 0 and 1."""
    projection_dim: int = field(metadata={"key": "projection_width"})
    """Length of the image's embedding, in the space that CLIP's image and text encoders share."""


class VisionEncoder(nn.Module):
    """CLIP's image encoder: a vision transformer whose class token becomes the embedding."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        hidden_size, eps = config.hidden_size, config.norm_eps
        self.image_size = config.image_size
        # rounded down: what is left over at the right and bottom edge is cut, as in the original
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + patches, hidden_size)
        self.pre_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.layers = nn.ModuleList(
            EncoderLayer(
                hidden_size,
                config.heads,
                config.intermediate_size,
                config.activation,
                eps,
                causal=False,
            )
            for _ in range(config.layers)
        )
        self.post_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.projection = nn.Linear(hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps images (b, 3, s, s) to embeddings (b, projection_dim), in the weights' dtype.

        s is the config's `image_size`. pixels: normalized by mean and standard deviation, see
        `PreprocessConfig`. The embedding is the class token's output, normalized and projected.
        Raises InputError if the images have another shape.
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
