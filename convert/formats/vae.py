"""AutoencoderKL: names and config."""

from anyv2v.convert.hf_config import Fields
from anyv2v.convert.rename import Rule, rules, under

RESNET = rules({"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"})
SHORTCUT = rules({"conv_shortcut": "shortcut"})
# diffusers before 0.17 called the four projections otherwise; such files are still around
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out", "group_norm": "norm"}
OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "out", "group_norm": "norm"}


def _table(attention: dict[str, str]) -> tuple[Rule, ...]:
    half = (
        *rules({"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}),
        *under("mid_block.resnets.{}", "mid.res.{}", RESNET),
        *under("mid_block.attentions.0", "mid.attention", rules(attention)),
    )
    layers = (*RESNET, *SHORTCUT)
    return (
        *under("encoder", "encoder", half),
        *under("encoder.down_blocks.{}.resnets.{}", "encoder.down.{}.res.{}", layers),
        Rule("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.down.{}.downsample.conv"),
        *rules({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}),
        *under("decoder", "decoder", half),
        *under("decoder.up_blocks.{}.resnets.{}", "decoder.up.{}.res.{}", layers),
        Rule("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.up.{}.upsample.conv"),
    )


VAE = _table(ATTENTION)
OLD_VAE = _table(OLD_ATTENTION)

# diffusers 0.42
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


def table(names) -> tuple[Rule, ...]:
    """The rules for a file with these names."""
    return OLD_VAE if any(".attentions.0.query." in name for name in names) else VAE


def vae_config(where: str, values: dict) -> dict:
    """The autoencoder's sizes from diffusers' config.json."""
    theirs = Fields(where, values, DEFAULTS)
    theirs.only("_class_name", "AutoencoderKL")
    theirs.only("act_fn", "silu")
    theirs.only("out_channels", theirs.only("in_channels", 3))
    theirs.only("shift_factor", None, 0, 0.0)
    theirs.only("latents_mean", None)
    theirs.only("latents_std", None)
    for part in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        theirs.only(part, True)
    widths = theirs.counts("block_out_channels")
    theirs.only("down_block_types", ["DownEncoderBlock2D"] * len(widths))
    theirs.only("up_block_types", ["UpDecoderBlock2D"] * len(widths))
    return {
        "channels": theirs["in_channels"],
        "latent_channels": theirs.only("latent_channels", 4),
        "widths": widths,
        "layers": theirs.count("layers_per_block"),
        "groups": theirs.divides("norm_num_groups", widths, "block_out_channels"),
        "scaling_factor": theirs.number("scaling_factor"),
    }
