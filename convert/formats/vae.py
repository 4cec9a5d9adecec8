"""Rules and config fields of diffusers' AutoencoderKL, the autoencoder in Hugging Face folders."""

from collections.abc import Iterable

from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.rename import Rule, prefixed, rules

RESNET = rules({"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"})
SHORTCUT = rules({"conv_shortcut": "shortcut"})
# diffusers before 0.17 had other names for the four projections; such files are still in use
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out", "group_norm": "norm"}
OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "out", "group_norm": "norm"}


def _table(attention: dict[str, str]) -> tuple[Rule, ...]:
    half = (
        *rules({"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}),
        *prefixed("mid_block.resnets.{}", "mid.res.{}", RESNET),
        *prefixed("mid_block.attentions.0", "mid.attention", rules(attention)),
    )
    layers = (*RESNET, *SHORTCUT)
    return (
        *prefixed("encoder", "encoder", half),
        *prefixed("encoder.down_blocks.{}.resnets.{}", "encoder.down.{}.res.{}", layers),
        Rule("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.down.{}.downsample.conv"),
        *rules({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}),
        *prefixed("decoder", "decoder", half),
        *prefixed("decoder.up_blocks.{}.resnets.{}", "decoder.up.{}.res.{}", layers),
        Rule("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.up.{}.upsample.conv"),
    )


VAE = _table(ATTENTION)
"""Rules for the parameter names that diffusers has written since 0.17."""
OLD_VAE = _table(OLD_ATTENTION)
"""Rules for the names of files that older versions of diffusers wrote."""

DEFAULTS = {
    "act_fn": "silu",
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""The values that diffusers 0.42 assumes for fields that the autoencoder's config.json lacks."""


def table(names: Iterable[str]) -> tuple[Rule, ...]:
    """Returns the rules that rename the parameters of an autoencoder, given their names."""
    return OLD_VAE if any(".attentions.0.query." in name for name in names) else VAE


def vae_config(where: str, values: dict) -> dict:
    """Translates diffusers' config of an autoencoder to the section "vae" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError if the
    network that it describes is not implemented.
    """
    config = HFConfig(where, values, DEFAULTS)
    config.one_of("_class_name", "AutoencoderKL")
    config.one_of("act_fn", "silu")
    config.one_of("out_channels", config.one_of("in_channels", 3))
    config.one_of("shift_factor", None, 0, 0.0)
    config.one_of("latents_mean", None)
    config.one_of("latents_std", None)
    for part in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        config.one_of(part, True)
    level_channels = config.counts("block_out_channels")
    config.one_of("down_block_types", ["DownEncoderBlock2D"] * len(level_channels))
    config.one_of("up_block_types", ["UpDecoderBlock2D"] * len(level_channels))
    return {
        "channels": config["in_channels"],
        "latent_channels": config.one_of("latent_channels", 4),
        "widths": level_channels,
        "layers": config.count("layers_per_block"),
        "groups": config.divisor("norm_num_groups", level_channels, "block_out_channels"),
        "scaling_factor": config.positive_number("scaling_factor"),
    }
