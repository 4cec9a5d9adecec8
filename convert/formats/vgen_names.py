"""The original release's names: VGen's for the UNet, Stable Diffusion's, OpenCLIP's.

Blocks are numbered through there, so the rules for them are made by counting.
"""

from dataclasses import replace

from anyv2v.convert.formats import i2vgen
from anyv2v.convert.rename import Rule, rules, under

FUSED = ("attn.in_proj_weight", "attn.in_proj_bias", "fn.to_qkv.weight")
"""Tensors that hold query, key and value in their rows; they are read as three: name[q], ..."""

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
# projections are linear layers in spatial transformers, convolutions of length 1 in temporal ones
TEMPORAL = tuple(
    replace(rule, squeeze=1) if rule.theirs in ("proj_in", "proj_out") else rule
    for rule in i2vgen.TEMPORAL
)
LEVELS, LAYERS = 4, 2
# the resnets of the way down that change the width; on the way up all of them do
WIDENING = {(1, 0), (2, 0)}


def _layer(place: str, level: str, layer: int, attends: bool, shortcut: bool) -> tuple[Rule, ...]:
    resnet = (*RESNET, *SHORTCUT) if shortcut else RESNET
    table = (
        *under(f"{place}.0", f"{level}.res.{layer}", resnet),
        # the misspelling is the checkpoint's
        *under(f"{place}.0.temopral_conv", f"{level}.temporal_conv.{layer}", i2vgen.TEMPORAL_CONV),
    )
    if attends:
        table += under(f"{place}.1", f"{level}.spatial.{layer}", i2vgen.SPATIAL)
        table += under(f"{place}.2", f"{level}.temporal.{layer}", TEMPORAL)
    return table


def _down() -> tuple[Rule, ...]:
    table: tuple[Rule, ...] = ()
    number = 1
    for level in range(LEVELS):
        for layer in range(LAYERS):
            place, shortcut = f"input_blocks.{number}", (level, layer) in WIDENING
            table += _layer(place, f"down.{level}", layer, level < LEVELS - 1, shortcut)
            number += 1
        if level < LEVELS - 1:
            table += (Rule(f"input_blocks.{number}.op", f"down.{level}.downsample.conv"),)
            number += 1
    return table


def _up() -> tuple[Rule, ...]:
    table: tuple[Rule, ...] = ()
    for number in range(LEVELS * (LAYERS + 1)):
        level, layer = divmod(number, LAYERS + 1)
        place, attends = f"output_blocks.{number}", level > 0
        table += _layer(place, f"up.{level}", layer, attends, shortcut=True)
        if layer == LAYERS and level < LEVELS - 1:
            # it follows the transformers, if there are any
            table += (Rule(f"{place}.{3 if attends else 1}.conv", f"up.{level}.upsample.conv"),)
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
    *under(
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
    *under("input_blocks.0.1", "transformer_in", TEMPORAL),
    *_down(),
    *under("middle_block.0", "mid.res.0", RESNET),
    *under("middle_block.0.temopral_conv", "mid.temporal_conv.0", i2vgen.TEMPORAL_CONV),
    *under("middle_block.1", "mid.spatial.0", i2vgen.SPATIAL),
    *under("middle_block.2", "mid.temporal.0", TEMPORAL),
    *under("middle_block.3", "mid.res.1", RESNET),
    *under("middle_block.3.temopral_conv", "mid.temporal_conv.1", i2vgen.TEMPORAL_CONV),
    *_up(),
)

# the autoencoder

VAE_RESNET = rules({"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"})
VAE_SHORTCUT = rules({"nin_shortcut": "shortcut"})
# its linear layers are kept as convolutions of size 1x1
VAE_ATTENTION = (
    Rule("norm", "norm"),
    *(Rule(part, part, squeeze=2) for part in PARTS),
    Rule("proj_out", "out", squeeze=2),
)
VAE_HALF = (
    *rules({"conv_in": "conv_in", "norm_out": "norm_out", "conv_out": "conv_out"}),
    *under("mid.block_1", "mid.res.0", VAE_RESNET),
    *under("mid.block_2", "mid.res.1", VAE_RESNET),
    *under("mid.attn_1", "mid.attention", VAE_ATTENTION),
)
# levels of the decoder that change the width, in the numbers of the checkpoint
NARROWING = (0, 1)


def _vae_up() -> tuple[Rule, ...]:
    """The decoder's levels: the checkpoint counts from the largest image, we count the way up."""
    table: tuple[Rule, ...] = ()
    for theirs in range(LEVELS):
        ours = LEVELS - 1 - theirs
        resnet = (*VAE_RESNET, *VAE_SHORTCUT) if theirs in NARROWING else VAE_RESNET
        table += under(f"up.{theirs}.block.{{}}", f"up.{ours}.res.{{}}", resnet)
        if theirs > 0:
            table += (Rule(f"up.{theirs}.upsample.conv", f"up.{ours}.upsample.conv"),)
    return table


VAE = under(
    "first_stage_model",
    "",
    (
        *under("encoder", "encoder", VAE_HALF),
        *under("encoder.down.{}.block.{}", "encoder.down.{}.res.{}", (*VAE_RESNET, *VAE_SHORTCUT)),
        Rule("encoder.down.{}.downsample.conv", "encoder.down.{}.downsample.conv"),
        *rules({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}),
        *under("decoder", "decoder", (*VAE_HALF, *_vae_up())),
    ),
)

# the two towers of clip

CLIP_LAYERS = under(
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
VISION = under(
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

# what is knowingly left, by the component that is read; * stands for anything

# ours ends with the hidden states, so the projection to the space shared with images is not needed
BESIDE_TOWERS = ("text_projection", "logit_scale")
NOT_NEEDED = {
    "unet": (),
    "vae": (
        # the diffusion model and the text tower of stable diffusion, and averages of them
        "model.diffusion_model.*",
        "model_ema.*",
        "cond_stage_model.*",
        # its schedule
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
    "text": ("visual.*", *BESIDE_TOWERS),
    "vision": (
        "token_embedding.*",
        "positional_embedding",
        "transformer.*",
        "ln_final.*",
        *BESIDE_TOWERS,
    ),
}

BESIDE_WEIGHTS = (
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
"""What a training run writes beside the state_dict that holds its weights."""

INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""What the pickle of v2-1_512-ema-pruned.ckpt names besides tensors: the state of its training."""
