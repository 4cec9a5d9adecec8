"""Hugging Face folders of Stable Diffusion 1.x and InstructPix2Pix: their rules and configs."""

from pathlib import Path

import torch

from anyv2v.convert.formats import clip, vae
from anyv2v.convert.formats.huggingface import (
    TOKENIZER,
    Component,
    check_vocabulary,
    open_model,
    translate,
)
from anyv2v.convert.formats.unet import (
    RESNET,
    attention_levels,
    config_defaults,
    transformer,
    unet,
)
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import Model
from anyv2v.convert.rename import prefixed
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, STABLE_DIFFUSION

UNET = unet(
    (
        *prefixed("resnets.{}", "res.{}", RESNET),
        # the projections are 1x1 convolutions in the checkpoint, matrices here
        *prefixed("attentions.{}", "spatial.{}", transformer("cross", squeeze=2)),
    )
)
"""The rules that rename the parameters of diffusers' UNet2DConditionModel."""

COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
}
"""Our name of each network -> where it is in the folder."""

UNET_DEFAULTS = config_defaults("2D") | {
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
}
"""The values that diffusers assumes for fields that the UNet's config.json lacks."""
UNET_FIXED = {
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
"""Fields of the UNet's config.json -> the value that diffusers assumes if they are absent, and the
only one that is supported, because any other means another network."""
SCHEDULERS = {
    "PNDMScheduler": {"set_alpha_to_one": False, "timestep_spacing": "leading"},
    "DDIMScheduler": {
        "clip_sample": True,
        "set_alpha_to_one": True,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading",
    },
    "EulerAncestralDiscreteScheduler": {
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "linspace",
    },
}
"""Class of each scheduler that these models are published with -> the values that diffusers assumes
for fields that scheduler_config.json lacks."""
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
"""The values that diffusers assumes for absent fields of any of the schedulers."""


def unet_config(where: str, values: dict) -> dict:
    """Translates diffusers' config of a UNet to the section "unet" of our config.json.

    where: the file, as error messages name it. values: its content. Raises InputError if the
    network that it describes is not implemented; the message says which model it belongs to (such
    as SDXL) where that is known.
    """
    config = HFConfig(where, values, UNET_DEFAULTS | UNET_FIXED)
    config.one_of("_class_name", "UNet2DConditionModel")
    if config["addition_embed_type"] is not None:
        raise config.error("addition_embed_type", "this is SDXL; only Stable Diffusion 1 is read")
    if config["use_linear_projection"] is not False:
        what = "this is Stable Diffusion 2; only Stable Diffusion 1 is read"
        raise config.error("use_linear_projection", what)
    if config["in_channels"] == 9:
        raise config.error(
            "in_channels", "this is an inpainting model; only 4 or, InstructPix2Pix, 8 are read"
        )
    for name, value in UNET_FIXED.items():
        config.one_of(name, *((1, 1.0) if value == 1 and value is not True else (value,)))
    level_channels = config.counts("block_out_channels")
    sizes = {
        "channels_in": config.one_of("in_channels", 4, 8),
        "channels_out": config.one_of("out_channels", 4),
        "widths": level_channels,
        "attention": attention_levels(config, "2D", len(level_channels)),
        "layers": config.count("layers_per_block"),
        # diffusers means the number of heads, under a wrong name that old files keep
        "heads": config.count("attention_head_dim"),
        "context_width": config.count("cross_attention_dim"),
        "groups": config.count("norm_num_groups"),
    }
    for name in ("heads", "groups"):
        if any(channels % sizes[name] for channels in level_channels):
            raise config.error("block_out_channels", f"{name}, {sizes[name]}, must divide each")
    return sizes


def schedule_config(where: str, values: dict) -> dict:
    """Translates diffusers' scheduler_config.json to the section "schedule" of our config.json.

    That section holds only the spacing of the timesteps, "leading" or "linspace", in which the
    published models differ. where: the file, as error messages name it. values: its content. Raises
    InputError at the first field that has another value than the published models.
    """
    kind = HFConfig(where, values, {"_class_name": None}).one_of("_class_name", *SCHEDULERS)
    config = HFConfig(where, values, SCHEDULER_DEFAULTS | SCHEDULERS[kind])
    config.one_of("num_train_timesteps", 1000)
    config.one_of("beta_start", 0.00085)
    config.one_of("beta_end", 0.012)
    config.one_of("beta_schedule", "scaled_linear")
    config.one_of("trained_betas", None)
    config.one_of("prediction_type", "epsilon")
    for name in SCHEDULERS[kind].keys() - {"timestep_spacing"}:
        config.one_of(name, False)
    spacing = config.one_of("timestep_spacing", "leading", "linspace")
    if spacing == "leading":
        config.one_of("steps_offset", 1)
    return {"spacing": spacing}


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a Hugging Face folder of Stable Diffusion 1.x or InstructPix2Pix.

    The safety checker is left out. dtype: the dtype to convert to; if it is float16, half-precision
    weight files are preferred to others. Raises InputError if a file is missing, or if the model is
    not implemented.
    """
    return open_model(src, COMPONENTS, read_config, prefer_half=dtype == torch.float16)


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Translates the config files of a folder of Stable Diffusion to our config.json.

    src: the folder. vocab: the tokenizer's token -> id. Raises InputError if a network is not
    implemented, or if the networks and the tokenizer do not match each other.
    """
    unet = translate(src / "unet/config.json", unet_config)
    text = translate(src / "text_encoder/config.json", clip.text_config)
    if text["width"] != unet["context_width"]:
        raise InputError(
            f"{src}: text_encoder: hidden_size is {text['width']}; "
            f"unet: cross_attention_dim is {unet['context_width']}"
        )
    check_vocabulary(src, vocab, text["vocab_size"])
    return {
        "format": FORMAT,
        "model": STABLE_DIFFUSION,
        "unet": unet,
        "vae": translate(src / "vae/config.json", vae.vae_config),
        "text": text,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "schedule": translate(src / "scheduler/scheduler_config.json", schedule_config),
    }
