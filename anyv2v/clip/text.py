"""CLIP's text tower: token ids to one vector per token."""

from dataclasses import dataclass

from torch import Tensor, nn

from anyv2v.clip.layers import EncoderLayer
from anyv2v.errors import InputError


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    tokens: int  # the longest sequence that has positions
    width: int
    heads: int
    layers: int
    mlp_width: int
    activation: str  # "gelu" or "quick_gelu"
    norm_eps: float


class TextEncoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.tokens, config.width)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.width,
                config.heads,
                config.mlp_width,
                config.activation,
                config.norm_eps,
                causal=True,
            )
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """Hidden states, under the final norm, as they were before the last `clip_skip` layers.

        ids (b, n) int64, n up to the config's `tokens` -> (b, n, width) in the weights' dtype.
        Padding is not masked: tokens only look back, as in the original (TIGER-AI-Lab/AnyV2V,
        i2vgen-xl, which runs clip_skip 1). Raises InputError for another shape of ids, and for
        more layers to skip than there are.
        """
        tokens = self.position_embedding.num_embeddings
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= tokens:
            raise InputError(
                f"ids of shape {tuple(ids.shape)} cannot be read: want (b, n), n from 1 to {tokens}"
            )
        if not 0 <= clip_skip <= len(self.layers):
            raise InputError(f"clip_skip {clip_skip} is not in 0..{len(self.layers)}, the layers")
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for layer in self.layers[: len(self.layers) - clip_skip]:
            x = layer(x)
        return self.final_norm(x)
