"""Rules and config fields of I2VGen-XL's UNet and noise schedule, as diffusers writes them."""

from anyv2v.convert.formats.unet import (
    ATTENTION,
    FEED_FORWARD,
    RESNET,
    attention_levels,
    config_defaults,
    transformer,
    unet,
)
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.rename import Rule, prefixed, rules
from anyv2v.errors import InputError

SPATIAL = transformer("cross")
# both attentions of a temporal block are self-attentions
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
    *prefixed("resnets.{}", "res.{}", RESNET),
    *prefixed("temp_convs.{}", "temporal_conv.{}", TEMPORAL_CONV),
    *prefixed("attentions.{}", "spatial.{}", SPATIAL),
    *prefixed("temp_attentions.{}", "temporal.{}", TEMPORAL),
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
    *prefixed(
        "image_latents_temporal_encoder",
        "conditioning.temporal",
        (Rule("norm1", "norm"), *prefixed("attn1", "self", ATTENTION), *FEED_FORWARD),
    ),
)

UNET = (
    *unet(LAYERS),
    *CONDITIONING,
    *prefixed("transformer_in", "transformer_in", TEMPORAL),
)
"""The rules that rename the parameters of diffusers' I2VGenXLUNet."""

UNET_DEFAULTS = config_defaults("3D") | {
    "cross_attention_dim": 1024,
    "attention_head_dim": None,
    "num_attention_heads": None,
    # not fields of diffusers' I2VGenXLUNet today, but of related classes: a file with another value
    # would mean another network
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
}
"""The values that diffusers assumes for fields that the UNet's config.json lacks."""
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
    """Translates diffusers' config of I2VGen-XL's UNet to the section "unet" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError if the
    network that it describes is not implemented.
    """
    config = HFConfig(where, values, UNET_DEFAULTS)
    config.one_of("_class_name", "I2VGenXLUNet")
    level_channels = config.counts("block_out_channels")
    channels = config.one_of("in_channels", 4)
    config.one_of("out_channels", channels)
    config.one_of("act_fn", "silu")
    config.one_of("norm_eps", 1e-5)
    config.one_of("downsample_padding", 1)
    config.one_of("mid_block_scale_factor", 1, 1.0)
    config.one_of("resnet_time_scale_shift", "default")
    config.one_of("upcast_attention", False)
    return {
        "channels": channels,
        "widths": level_channels,
        "attention": attention_levels(config, "3D", len(level_channels)),
        "layers": config.count("layers_per_block"),
        "head_dim": _head_dim(config),
        "context_width": config.count("cross_attention_dim"),
        "groups": config.divisor("norm_num_groups", level_channels, "block_out_channels"),
    }


def _head_dim(config: HFConfig) -> int:
    # diffusers up to 0.26 reads the dim of a head from num_attention_heads; later versions ignore
    # that field and read attention_head_dim
    present = [n for n in ("attention_head_dim", "num_attention_heads") if config[n] is not None]
    sizes = {config.count(name) for name in present}
    if len(sizes) > 1:
        raise InputError(
            f"{config.where}: attention_head_dim is {config['attention_head_dim']} and "
            f"num_attention_heads is {config['num_attention_heads']}; both are names for the size "
            "of one head in I2VGen-XL, so they must be equal"
        )
    return sizes.pop() if sizes else 64


def schedule_config(where: str, values: dict) -> dict:
    """Translates diffusers' scheduler_config.json to the section "schedule" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError at the first
    field that differs from I2VGen-XL's published schedule, which alone is implemented.
    """
    config = HFConfig(where, values, SCHEDULER_DEFAULTS)
    config.one_of("_class_name", "DDIMScheduler")
    config.one_of("beta_schedule", "squaredcos_cap_v2")
    config.one_of("trained_betas", None)
    config.one_of("clip_sample", False)
    config.one_of("set_alpha_to_one", True)
    config.one_of("prediction_type", "v_prediction")
    config.one_of("thresholding", False)
    config.one_of("timestep_spacing", "leading")
    config.one_of("rescale_betas_zero_snr", True)
    return {
        "train_steps": config.one_of("num_train_timesteps", 1000),
        "steps_offset": config.one_of("steps_offset", 1),
    }
