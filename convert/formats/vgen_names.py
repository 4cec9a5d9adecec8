"""Parameter names of I2VGen-XL's original release: those of VGen, Stable Diffusion and OpenCLIP.

VGen numbers the blocks of its UNet consecutively, so the rules for them are made by counting.
"""

from dataclasses import replace

from anyv2v.convert.formats import i2vgen
from anyv2v.convert.rename import Rule, prefixed, rules

FUSED = ("attn.in_proj_weight", "attn.in_proj_bias", "fn.to_qkv.weight")
"""Endings of the names of tensors that stack query, key and value; `split_fused` splits each into
name[q], name[k] and name[v]."""

PARTS = ("q", "k", "v")

# the unet

RESNET = rules(
    {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
    }
)
SHORTCUT = rules({"skip_connection": "shortcut"})
# in the checkpoint, projections are linear layers in spatial transformers, but convolutions of
# length 1 in temporal ones
TEMPORAL = tuple(
    replace(rule, squeeze=1) if rule.theirs in ("proj_in", "proj_out") else rule
    for rule in i2vgen.TEMPORAL
)
LEVELS, LAYERS = 4, 2
# (level, layer) of the resnets that change the channels on the way down; on the way up all do
CHANNEL_CHANGES = {(1, 0), (2, 0)}


def _layer(block: str, level: str, layer: int, attention: bool, shortcut: bool) -> tuple[Rule, ...]:
    resnet = (*RESNET, *SHORTCUT) if shortcut else RESNET
    table = (
        *prefixed(f"{block}.0", f"{level}.res.{layer}", resnet),
        # the misspelling is the checkpoint's
        *prefixed(
            f"{block}.0.temopral_conv", f"{level}.temporal_conv.{layer}", i2vgen.TEMPORAL_CONV
        ),
    )
    if attention:
        table += prefixed(f"{block}.1", f"{level}.spatial.{layer}", i2vgen.SPATIAL)
        table += prefixed(f"{block}.2", f"{level}.temporal.{layer}", TEMPORAL)
    return table


def _down() -> tuple[Rule, ...]:
    table: tuple[Rule, ...] = ()
    number = 1
    for level in range(LEVELS):
        for layer in range(LAYERS):
            block, shortcut = f"input_blocks.{number}", (level, layer) in CHANNEL_CHANGES
            table += _layer(block, f"down.{level}", layer, level < LEVELS - 1, shortcut)
            number += 1
        if level < LEVELS - 1:
            table += (Rule(f"input_blocks.{number}.op", f"down.{level}.downsample.conv"),)
            number += 1
    return table


def _up() -> tuple[Rule, ...]:
    table: tuple[Rule, ...] = ()
    for number in range(LEVELS * (LAYERS + 1)):
        level, layer = divmod(number, LAYERS + 1)
        block, attention = f"output_blocks.{number}", level > 0
        table += _layer(block, f"up.{level}", layer, attention, shortcut=True)
        if layer == LAYERS and level < LEVELS - 1:
            # it comes after the resnet and, where the level has them, the two transformers
            table += (Rule(f"{block}.{3 if attention else 1}.conv", f"up.{level}.upsample.conv"),)
    return table


UNET = (
    *rules(
        {
            "time_embed.{}": "time_embedding.{}",
            "fps_embedding.{}": "conditioning.fps.{}",
            "context_embedding.{}": "conditioning.image_tokens.{}",
            "local_image_concat.{}": "conditioning.latents.{}",
            "local_image_embedding.{}": "conditioning.latent_tokens.{}",
            "input_blocks.0.0": "conv_in",
            "out.0": "norm_out",
            "out.2": "conv_out",
        }
    ),
    *prefixed(
        "local_temporal_encoder.layers.0",
        "conditioning.temporal",
        (
            *rules(
                {
                    "0.norm": "norm",
                    **{f"0.fn.to_qkv.weight[{part}]": f"self.{part}.weight" for part in PARTS},
                    "0.fn.to_out.0": "self.out",
                    "1.net.0.0": "ff.up",
                    "1.net.2": "ff.down",
                }
            ),
        ),
    ),
    *prefixed("input_blocks.0.1", "transformer_in", TEMPORAL),
    *_down(),
    *prefixed("middle_block.0", "mid.res.0", RESNET),
    *prefixed("middle_block.0.temopral_conv", "mid.temporal_conv.0", i2vgen.TEMPORAL_CONV),
    *prefixed("middle_block.1", "mid.spatial.0", i2vgen.SPATIAL),
    *prefixed("middle_block.2", "mid.temporal.0", TEMPORAL),
    *prefixed("middle_block.3", "mid.res.1", RESNET),
    *prefixed("middle_block.3.temopral_conv", "mid.temporal_conv.1", i2vgen.TEMPORAL_CONV),
    *_up(),
)

# the autoencoder

VAE_RESNET = rules({"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"})
VAE_SHORTCUT = rules({"nin_shortcut": "shortcut"})
# its linear layers are stored as 1x1 convolutions
VAE_ATTENTION = (
    Rule("norm", "norm"),
    *(Rule(part, part, squeeze=2) for part in PARTS),
    Rule("proj_out", "out", squeeze=2),
)
VAE_HALF = (
    *rules({"conv_in": "conv_in", "norm_out": "norm_out", "conv_out": "conv_out"}),
    *prefixed("mid.block_1", "mid.res.0", VAE_RESNET),
    *prefixed("mid.block_2", "mid.res.1", VAE_RESNET),
    *prefixed("mid.attn_1", "mid.attention", VAE_ATTENTION),
)
# levels of the decoder that change the channels, as the checkpoint numbers them
VAE_CHANNEL_CHANGES = (0, 1)


def _vae_up() -> tuple[Rule, ...]:
    """The decoder's levels; the checkpoint counts them from the largest image, we the other way."""
    table: tuple[Rule, ...] = ()
    for theirs in range(LEVELS):
        ours = LEVELS - 1 - theirs
        resnet = (*VAE_RESNET, *VAE_SHORTCUT) if theirs in VAE_CHANNEL_CHANGES else VAE_RESNET
        table += prefixed(f"up.{theirs}.block.{{}}", f"up.{ours}.res.{{}}", resnet)
        if theirs > 0:
            table += (Rule(f"up.{theirs}.upsample.conv", f"up.{ours}.upsample.conv"),)
    return table


VAE = prefixed(
    "first_stage_model",
    "",
    (
        *prefixed("encoder", "encoder", VAE_HALF),
        *prefixed(
            "encoder.down.{}.block.{}", "encoder.down.{}.res.{}", (*VAE_RESNET, *VAE_SHORTCUT)
        ),
        Rule("encoder.down.{}.downsample.conv", "encoder.down.{}.downsample.conv"),
        *rules({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}),
        *prefixed("decoder", "decoder", (*VAE_HALF, *_vae_up())),
    ),
)

# the two towers of clip

CLIP_LAYERS = prefixed(
    "transformer.resblocks.{}",
    "layers.{}",
    rules(
        {
            "ln_1": "norm1",
            **{f"attn.in_proj_weight[{part}]": f"self.{part}.weight" for part in PARTS},
            **{f"attn.in_proj_bias[{part}]": f"self.{part}.bias" for part in PARTS},
            "attn.out_proj": "self.out",
            "ln_2": "norm2",
            "mlp.c_fc": "mlp.up",
            "mlp.c_proj": "mlp.down",
        }
    ),
)
TEXT = (
    *rules(
        {
            "token_embedding": "token_embedding",
            "positional_embedding": "position_embedding.weight",
        }
    ),
    *CLIP_LAYERS,
    *rules({"ln_final": "final_norm"}),
)
VISION = prefixed(
    "visual",
    "",
    (
        *rules(
            {
                "class_embedding": "class_embedding",
                "conv1": "patch_embedding",
                "positional_embedding": "position_embedding.weight",
                "ln_pre": "pre_norm",
            }
        ),
        *CLIP_LAYERS,
        *rules({"ln_post": "post_norm"}),
        Rule("proj", "projection.weight", transpose=True),
    ),
)

# tensors that are left out

# our text tower ends with the hidden states, so its projection to the space that it shares with
# images is not needed
PROJECTION = ("text_projection", "logit_scale")
NOT_NEEDED: dict[str, tuple[str, ...]] = {
    "unet": (),
    "vae": (
        # the diffusion model and the text tower of Stable Diffusion, and their moving averages
        "model.diffusion_model.*",
        "model_ema.*",
        "cond_stage_model.*",
        # its noise schedule
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
    ),
    "text": ("visual.*", *PROJECTION),
    "vision": (
        "token_embedding.*",
        "positional_embedding",
        "transformer.*",
        "ln_final.*",
        *PROJECTION,
    ),
}
"""Component -> patterns (fnmatch) for the tensors in the component's file that its network
lacks."""

TRAINING_KEYS = (
    "step",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "loops",
    "callbacks",
    "optimizer",
    "optimizer_states",
    "lr_schedulers",
    "native_amp_scaling_state",
    "amp_scaling_state",
    "NativeMixedPrecisionPlugin",
    "hparams_name",
    "hparams_type",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
)
"""Keys that a training run writes into its file beside "state_dict", which holds the weights."""

IGNORED_GLOBALS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""Classes and functions, besides those of tensors, that the pickle in v2-1_512-ema-pruned.ckpt
refers to; they belong to the state of its training."""
