"""I2VGen-XL: its UNet's names and config, and its schedule."""

from anyv2v.convert.formats.unet import ATTENTION, FEED_FORWARD, RESNET, transformer, unet
from anyv2v.convert.hf_config import Fields
from anyv2v.convert.rename import Rule, rules, under
from anyv2v.errors import InputError

# both attentions of a temporal block are self-attentions
SPATIAL = transformer("cross")
TEMPORAL = transformer("self2")

# 3x1x1 convolutions over (f, h, w) in the checkpoint, 3x1 over (f, h*w) here
TEMPORAL_CONV = (
    Rule("conv1.0", "norm1"),
    Rule("conv1.2", "conv1", squeeze=1),
    *(
        rule
        for k in (2, 3, 4)
        for rule in (
            Rule(f"conv{k}.0", f"norm{k}"),
            Rule(f"conv{k}.3", f"conv{k}", squeeze=1),
        )
    ),
)
LAYERS = (
    *under("resnets.{}", "res.{}", RESNET),
    *under("temp_convs.{}", "temporal_conv.{}", TEMPORAL_CONV),
    *under("attentions.{}", "spatial.{}", SPATIAL),
    *under("temp_attentions.{}", "temporal.{}", TEMPORAL),
)

CONDITIONING = (
    *rules(
        {
            "fps_embedding.{}": "conditioning.fps.{}",
            "context_embedding.{}": "conditioning.image_tokens.{}",
            "image_latents_proj_in.{}": "conditioning.latents.{}",
            "image_latents_context_embedding.{}": "conditioning.latent_tokens.{}",
        }
    ),
    *under(
        "image_latents_temporal_encoder",
        "conditioning.temporal",
        (Rule("norm1", "norm"), *under("attn1", "self", ATTENTION), *FEED_FORWARD),
    ),
)

UNET = (
    *unet(LAYERS),
    *CONDITIONING,
    *under("transformer_in", "transformer_in", TEMPORAL),
)

DOWN_TYPES = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}
UP_TYPES = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}
# what diffusers' class takes for an absent field; the last six are not fields of it today, but
# belong to its relatives: a value other than theirs would mean another network
UNET_DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1024,
    "attention_head_dim": None,
    "num_attention_heads": None,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
}
# diffusers 0.26 to 0.42, DDIMScheduler
SCHEDULER_DEFAULTS = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}


def unet_config(where: str, values: dict) -> dict:
    """The UNet's sizes from diffusers' config.json."""
    theirs = Fields(where, values, UNET_DEFAULTS)
    theirs.only("_class_name", "I2VGenXLUNet")
    widths = theirs.counts("block_out_channels")
    channels = theirs.only("in_channels", 4)
    theirs.only("out_channels", channels)
    theirs.only("act_fn", "silu")
    theirs.only("norm_eps", 1e-5)
    theirs.only("downsample_padding", 1)
    theirs.only("mid_block_scale_factor", 1, 1.0)
    theirs.only("resnet_time_scale_shift", "default")
    theirs.only("upcast_attention", False)
    return {
        "channels": channels,
        "widths": widths,
        "attention": attention(theirs, DOWN_TYPES, UP_TYPES, len(widths)),
        "layers": theirs.count("layers_per_block"),
        "head_dim": _head_dim(theirs),
        "context_width": theirs.count("cross_attention_dim"),
        "groups": theirs.divides("norm_num_groups", widths, "block_out_channels"),
    }


def attention(
    theirs: Fields, down_types: dict[str, bool], up_types: dict[str, bool], levels: int
) -> list[bool]:
    """Which levels have transformers, from the widest image to the smallest.

    down_types, up_types: type of a block -> whether it has.
    """

    def read(name: str, types: dict[str, bool]) -> list[bool]:
        value = theirs[name]
        if not isinstance(value, list | tuple) or not all(
            isinstance(block, str) and block in types for block in value
        ):
            raise theirs.refuse(name, f"blocks are {' or '.join(types)}")
        if len(value) != levels:
            raise theirs.refuse(name, f"one block per width is needed, that is {levels}")
        return [types[block] for block in value]

    down = read("down_block_types", down_types)
    if read("up_block_types", up_types) != down[::-1]:
        raise theirs.refuse("up_block_types", "it must mirror down_block_types")
    return down


def _head_dim(theirs: Fields) -> int:
    # diffusers up to 0.26 reads the size of a head from num_attention_heads, later versions
    # ignore that and read attention_head_dim
    given = [n for n in ("attention_head_dim", "num_attention_heads") if theirs[n] is not None]
    sizes = {theirs.count(name) for name in given}
    if len(sizes) > 1:
        raise InputError(
            f"{theirs.where}: attention_head_dim is {theirs['attention_head_dim']} and "
            f"num_attention_heads is {theirs['num_attention_heads']}; both are names for the size "
            "of one head in I2VGen-XL, so they must be equal"
        )
    return sizes.pop() if sizes else 64


def schedule_config(where: str, values: dict) -> dict:
    """The noise schedule from diffusers' scheduler_config.json: there is one that we implement."""
    theirs = Fields(where, values, SCHEDULER_DEFAULTS)
    theirs.only("_class_name", "DDIMScheduler")
    theirs.only("beta_schedule", "squaredcos_cap_v2")
    theirs.only("trained_betas", None)
    theirs.only("clip_sample", False)
    theirs.only("set_alpha_to_one", True)
    theirs.only("prediction_type", "v_prediction")
    theirs.only("thresholding", False)
    theirs.only("timestep_spacing", "leading")
    theirs.only("rescale_betas_zero_snr", True)
    return {
        "train_steps": theirs.only("num_train_timesteps", 1000),
        "steps_offset": theirs.only("steps_offset", 1),
    }
