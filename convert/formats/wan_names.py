"""The names of Wan 2.2's parameters: on the hub for diffusers, in the original release, and ours.

The names in the original release are those of https://github.com/Wan-Video/Wan2.2, in
wan/modules/model.py, vae2_2.py and t5.py.
"""

from anyv2v.convert.rename import Rule, prefixed, rules

ATTENTION = rules(
    {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "out",
        "norm_q": "norm_q",
        "norm_k": "norm_k",
    }
)
TRANSFORMER = (
    *prefixed("blocks.{}.attn1", "block.{}.self", ATTENTION),
    *prefixed("blocks.{}.attn2", "block.{}.cross", ATTENTION),
    *rules(
        {
            "blocks.{}.scale_shift_table": "block.{}.modulation",
            "blocks.{}.norm2": "block.{}.norm_cross",
            "blocks.{}.ffn.net.0.proj": "block.{}.ff.up",
            "blocks.{}.ffn.net.2": "block.{}.ff.down",
            "patch_embedding": "patch",
            "condition_embedder.time_embedder.linear_1": "time.0",
            "condition_embedder.time_embedder.linear_2": "time.2",
            "condition_embedder.time_proj": "time_projection",
            "condition_embedder.text_embedder.linear_1": "text.0",
            "condition_embedder.text_embedder.linear_2": "text.2",
            "scale_shift_table": "modulation",
            "proj_out": "out",
        }
    ),
)
"""diffusers' WanTransformer3DModel; all shapes are the same."""

ORIGINAL_ATTENTION = rules(
    {"q": "q", "k": "k", "v": "v", "o": "out", "norm_q": "norm_q", "norm_k": "norm_k"}
)
ORIGINAL_TRANSFORMER = (
    *prefixed("blocks.{}.self_attn", "block.{}.self", ORIGINAL_ATTENTION),
    *prefixed("blocks.{}.cross_attn", "block.{}.cross", ORIGINAL_ATTENTION),
    *rules(
        {
            "blocks.{}.modulation": "block.{}.modulation",
            "blocks.{}.norm3": "block.{}.norm_cross",
            "blocks.{}.ffn.0": "block.{}.ff.up",
            "blocks.{}.ffn.2": "block.{}.ff.down",
            "patch_embedding": "patch",
            "time_embedding.0": "time.0",
            "time_embedding.2": "time.2",
            "time_projection.1": "time_projection",
            "text_embedding.0": "text.0",
            "text_embedding.2": "text.2",
            "head.modulation": "modulation",
            "head.head": "out",
        }
    ),
)
"""The same in the original's files; all shapes are the same."""

RESNET = (
    *(Rule(f"norm{i}.gamma", f"norm{i}.weight", squeeze=3) for i in (1, 2)),
    *rules({"conv1": "conv1", "conv2": "conv2"}),
)
RESNET_AND_SHORTCUT = (*RESNET, Rule("conv_shortcut", "shortcut", squeeze=3))
FRAME_ATTENTION = (
    Rule("norm.gamma", "norm.weight", squeeze=2),
    Rule("to_qkv", "qkv", squeeze=2),
    Rule("proj", "out", squeeze=2),
)
HALF = (
    *rules({"conv_in": "conv_in", "conv_out": "conv_out"}),
    Rule("norm_out.gamma", "norm_out.weight", squeeze=3),
    *prefixed("mid_block.resnets.{}", "mid.res.{}", RESNET),
    *prefixed("mid_block.attentions.0", "mid.attention", FRAME_ATTENTION),
)
VAE_COMMON = (
    *(Rule(name, name, squeeze=3) for name in ("quant_conv", "post_quant_conv")),
    *prefixed("encoder", "encoder", HALF),
    *prefixed("decoder", "decoder", HALF),
    *prefixed("decoder.up_blocks.{}.resnets.{}", "decoder.up.{}.res.{}", RESNET_AND_SHORTCUT),
)
"""The rules for the autoencoders of Wan 2.1 and 2.2."""


def resample(ours: str, temporal: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a downsampler or upsampler, whose name is `ours`."""
    space = {"resample.1": f"{ours}.space.conv"}
    return rules(space | {"time_conv": f"{ours}.time"} if temporal else space)


VAE = (
    *VAE_COMMON,
    *prefixed("encoder.down_blocks.{}.resnets.{}", "encoder.down.{}.res.{}", RESNET_AND_SHORTCUT),
    *prefixed("encoder.down_blocks.{}.downsampler", "encoder.down.{}", resample("downsample")),
    *prefixed("decoder.up_blocks.{}.upsampler", "decoder.up.{}", resample("upsample")),
)
"""diffusers' AutoencoderKLWan in the form of Wan 2.2."""

ORIGINAL_RESNET = (
    Rule("residual.0.gamma", "norm1.weight", squeeze=3),
    Rule("residual.2", "conv1"),
    Rule("residual.3.gamma", "norm2.weight", squeeze=3),
    Rule("residual.6", "conv2"),
)
ORIGINAL_HALF = (
    *rules({"conv1": "conv_in", "head.2": "conv_out"}),
    Rule("head.0.gamma", "norm_out.weight", squeeze=3),
    *prefixed("middle.0", "mid.res.0", ORIGINAL_RESNET),
    *prefixed("middle.1", "mid.attention", FRAME_ATTENTION),
    *prefixed("middle.2", "mid.res.1", ORIGINAL_RESNET),
)


def original_vae(layers: int) -> tuple[Rule, ...]:
    """Returns the rules of Wan2.2_VAE.pth.

    layers: number of resnets in a level of the encoder. A level is a list of these and a
    downsampler; in the decoder, of one resnet more and an upsampler.
    """
    resnet = (*ORIGINAL_RESNET, Rule("shortcut", "shortcut", squeeze=3))
    down, up = "encoder.downsamples.{}.downsamples", "decoder.upsamples.{}.upsamples"
    return (
        Rule("conv1", "quant_conv", squeeze=3),
        Rule("conv2", "post_quant_conv", squeeze=3),
        *prefixed("encoder", "encoder", ORIGINAL_HALF),
        *prefixed("decoder", "decoder", ORIGINAL_HALF),
        *prefixed(f"{down}.{{}}", "encoder.down.{}.res.{}", resnet),
        *prefixed(f"{up}.{{}}", "decoder.up.{}.res.{}", resnet),
        *prefixed(f"{down}.{layers}", "encoder.down.{}", resample("downsample")),
        *prefixed(f"{up}.{layers + 1}", "decoder.up.{}", resample("upsample")),
    )


TEXT = (
    *prefixed(
        "encoder.block.{}",
        "layers.{}",
        rules(
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
        ),
    ),
    *rules({"shared": "token_embedding", "encoder.final_layer_norm": "final_norm"}),
)
"""transformers' UMT5EncoderModel, but for `SECOND_NAME`; all shapes are the same."""
EMBEDDING, SECOND_NAME = "shared.weight", "encoder.embed_tokens.weight"
"""Both names of the token embedding in transformers, of which files may have either or both."""

ORIGINAL_TEXT = (
    *prefixed(
        "blocks.{}",
        "layers.{}",
        rules(
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
        ),
    ),
    *rules({"token_embedding": "token_embedding", "norm": "final_norm"}),
)
"""models_t5_umt5-xxl-enc-bf16.pth; all shapes are the same."""
