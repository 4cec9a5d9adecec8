"""CLIP's text encoder: token ids to one vector per token."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from anyv2v.clip.layers import EncoderLayer
from anyv2v.errors import InputError


@dataclass(frozen=True)
class TextConfig:
    """Section "text" of config.json."""

    vocab_size: int
    tokens: int
    """Number of position embeddings: the length of the longest sequence."""
    hidden_size: int = field(metadata={"key": "width"})
    heads: int
    layers: int
    intermediate_size: int = field(metadata={"key": "mlp_width"})
    """Length of the vectors inside an MLP."""
    activation: str
    """"gelu" or "quick_gelu"."""
    norm_eps: float


class TextEncoder(nn.Module):
    """A causal transformer over token ids, without the original's projection of the last token."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.tokens, config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.hidden_size,
                config.heads,
                config.intermediate_size,
                config.activation,
                config.norm_eps,
                causal=True,
            )
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """Maps ids (b, n) int64 to (b, n, hidden_size), in the weights' dtype.

        These are the hidden states before the last `clip_skip` layers, with the final norm applied;
        the original (TIGER-AI-Lab/AnyV2V, i2vgen-xl) runs with clip_skip 1. n is at most the
        config's `tokens`. Padding is not masked, as in the original: tokens only look back. Raises
        InputError for ids of another shape and for more layers to skip than there are.
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
