"""CLIP's text encoder, which maps token ids to one vector per token."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from anyv2v.clip.layers import EncoderLayer
from anyv2v.errors import InputError


@dataclass(frozen=True)
class TextConfig:
    """Section "text" of a weights folder's config.json: the sizes of the text encoder."""

    vocab_size: int
    """Number of token embeddings, that is, of possible token ids."""
    tokens: int
    """Number of position embeddings, that is, the greatest number of tokens in a sequence."""
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


class TextEncoder(nn.Module):
    """CLIP's text encoder: a causal transformer that maps token ids to hidden states.

    CLIP's projection of the last token to an embedding is left out.
    """

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
        """Maps token ids (b, n) int64 to hidden states (b, n, hidden_size) in the weights' dtype.

        The last `clip_skip` layers are skipped, and the final norm is applied to the output of the
        layer before; AnyV2V's original code (TIGER-AI-Lab/AnyV2V, i2vgen-xl) uses clip_skip 1.
        Padding is not masked; since attention is causal, padding does not change the tokens before.
        Raises InputError if n is not between 1 and the config's `tokens`, or `clip_skip` is not
        between 0 and the number of layers.
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
