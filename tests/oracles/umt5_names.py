"""Names of a UMT5 encoder's tensors: as transformers and as Wan's original have them -> ours."""

HUB_LAYER = {
    "layer.0.layer_norm.weight": "norm1.weight",
    "layer.0.SelfAttention.q.weight": "self.q.weight",
    "layer.0.SelfAttention.k.weight": "self.k.weight",
    "layer.0.SelfAttention.v.weight": "self.v.weight",
    "layer.0.SelfAttention.o.weight": "self.out.weight",
    "layer.0.SelfAttention.relative_attention_bias.weight": "self.relative_bias.weight",
    "layer.1.layer_norm.weight": "norm2.weight",
    "layer.1.DenseReluDense.wi_0.weight": "mlp.gate.weight",
    "layer.1.DenseReluDense.wi_1.weight": "mlp.up.weight",
    "layer.1.DenseReluDense.wo.weight": "mlp.down.weight",
}
ORIGINAL_LAYER = {
    "norm1.weight": "norm1.weight",
    "attn.q.weight": "self.q.weight",
    "attn.k.weight": "self.k.weight",
    "attn.v.weight": "self.v.weight",
    "attn.o.weight": "self.out.weight",
    "pos_embedding.embedding.weight": "self.relative_bias.weight",
    "norm2.weight": "norm2.weight",
    "ffn.gate.0.weight": "mlp.gate.weight",
    "ffn.fc1.weight": "mlp.up.weight",
    "ffn.fc2.weight": "mlp.down.weight",
}


def hub_names(layers: int) -> dict[str, str]:
    """Those of transformers' UMT5EncoderModel, in which the embedding has two names."""
    return {
        "shared.weight": "token_embedding.weight",
        "encoder.embed_tokens.weight": "token_embedding.weight",
        "encoder.final_layer_norm.weight": "final_norm.weight",
        **_of_layers("encoder.block", HUB_LAYER, layers),
    }


def original_names(layers: int) -> dict[str, str]:
    """Those of Wan's models_t5_umt5-xxl-enc-bf16.pth (wan/modules/t5.py)."""
    return {
        "token_embedding.weight": "token_embedding.weight",
        "norm.weight": "final_norm.weight",
        **_of_layers("blocks", ORIGINAL_LAYER, layers),
    }


def _of_layers(prefix: str, names: dict[str, str], layers: int) -> dict[str, str]:
    return {
        f"{prefix}.{i}.{theirs}": f"layers.{i}.{ours}"
        for i in range(layers)
        for theirs, ours in names.items()
    }
