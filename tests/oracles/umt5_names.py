"""The names of a UMT5 encoder's parameters in transformers and in Wan's files, and ours."""

from collections.abc import Mapping

from torch import Tensor

from anyv2v.convert.rename import prefixed, rules
from tests.oracles.wan_names import renamed

LAYER = rules(
    {
        "layer.0.layer_norm": "norm1",
        "layer.0.SelfAttention.q": "self.q",
        "layer.0.SelfAttention.k": "self.k",
        "layer.0.SelfAttention.v": "self.v",
        "layer.0.SelfAttention.o": "self.out",
        "layer.0.SelfAttention.relative_attention_bias": "self.relative_bias",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi_0": "mlp.gate",
        "layer.1.DenseReluDense.wi_1": "mlp.up",
        "layer.1.DenseReluDense.wo": "mlp.down",
    }
)
ENCODER = (
    *prefixed("encoder.block.{}", "layers.{}", LAYER),
    *rules({"shared": "token_embedding", "encoder.final_layer_norm": "final_norm"}),
)
"""`UMT5EncoderModel`, but for the second name of its embedding; all shapes are the same."""
SECOND_NAME = "encoder.embed_tokens.weight"

ORIGINAL_LAYER = rules(
    {
        "norm1": "norm1",
        "attn.q": "self.q",
        "attn.k": "self.k",
        "attn.v": "self.v",
        "attn.o": "self.out",
        "pos_embedding.embedding": "self.relative_bias",
        "norm2": "norm2",
        "ffn.gate.0": "mlp.gate",
        "ffn.fc1": "mlp.up",
        "ffn.fc2": "mlp.down",
    }
)
ORIGINAL_ENCODER = (
    *prefixed("blocks.{}", "layers.{}", ORIGINAL_LAYER),
    *rules({"token_embedding": "token_embedding", "norm": "final_norm"}),
)
"""models_t5_umt5-xxl-enc-bf16.pth of Wan (wan/modules/t5.py); all shapes are the same."""


def hub_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `UMT5EncoderModel` by our names, the embedding once."""
    once = dict(state)
    assert once.pop(SECOND_NAME).data_ptr() == state["shared.weight"].data_ptr()
    return renamed(once, ENCODER)
