"""Stable Diffusion 1.x and InstructPix2Pix: names, configs, and a Hugging Face folder, opened."""

from collections.abc import Callable
from pathlib import Path

import torch

from anyv2v.convert.formats import clip, vae
from anyv2v.convert.formats.huggingface import TOKENIZER, Component, check_vocabulary, open_source
from anyv2v.convert.formats.i2vgen import attention
from anyv2v.convert.formats.unet import RESNET, transformer, unet
from anyv2v.convert.hf_config import Fields
from anyv2v.convert.model import Model
from anyv2v.convert.rename import under
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, STABLE_DIFFUSION, read_json

UNET = unet(
    (
        *under("resnets.{}", "res.{}", RESNET),
        # its projections are 1x1 convolutions in the checkpoint, matrices here
        *under("attentions.{}", "spatial.{}", transformer("cross", squeeze=2)),
    )
)

COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
}

DOWN_TYPES = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_TYPES = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
# what diffusers' class takes for an absent field
UNET_DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
}
# the same, where every other value means another network
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
# of the schedulers that come with these models, what they take for absent fields
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
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}


def unet_config(where: str, values: dict) -> dict:
    """The UNet's sizes from diffusers' config.json; InputError says if it is a relative's."""
    theirs = Fields(where, values, UNET_DEFAULTS | UNET_FIXED)
    theirs.only("_class_name", "UNet2DConditionModel")
    if theirs["addition_embed_type"] is not None:
        raise theirs.refuse("addition_embed_type", "this is SDXL; only Stable Diffusion 1 is read")
    if theirs["use_linear_projection"] is not False:
        what = "this is Stable Diffusion 2; only Stable Diffusion 1 is read"
        raise theirs.refuse("use_linear_projection", what)
    if theirs["in_channels"] == 9:
        raise theirs.refuse(
            "in_channels", "this is an inpainting model; only 4 or, InstructPix2Pix, 8 are read"
        )
    for name, value in UNET_FIXED.items():
        theirs.only(name, *((1, 1.0) if value == 1 and value is not True else (value,)))
    widths = theirs.counts("block_out_channels")
    sizes = {
        "channels_in": theirs.only("in_channels", 4, 8),
        "channels_out": theirs.only("out_channels", 4),
        "widths": widths,
        "attention": attention(theirs, DOWN_TYPES, UP_TYPES, len(widths)),
        "layers": theirs.count("layers_per_block"),
        # diffusers' misnomer, kept for the sake of old files
        "heads": theirs.count("attention_head_dim"),
        "context_width": theirs.count("cross_attention_dim"),
        "groups": theirs.count("norm_num_groups"),
    }
    for name in ("heads", "groups"):
        if any(width % sizes[name] for width in widths):
            raise theirs.refuse("block_out_channels", f"{name}, {sizes[name]}, must divide each")
    return sizes


def schedule_config(where: str, values: dict) -> dict:
    """How Euler's timesteps are spaced, from scheduler_config.json; all else is always the same."""
    kinds = {"_class_name": None}
    kind = Fields(where, values, kinds).only("_class_name", *SCHEDULERS)
    theirs = Fields(where, values, SCHEDULER_DEFAULTS | SCHEDULERS[kind])
    theirs.only("num_train_timesteps", 1000)
    theirs.only("beta_start", 0.00085)
    theirs.only("beta_end", 0.012)
    theirs.only("beta_schedule", "scaled_linear")
    theirs.only("trained_betas", None)
    theirs.only("prediction_type", "epsilon")
    for name in SCHEDULERS[kind].keys() - {"timestep_spacing"}:
        theirs.only(name, False)
    spacing = theirs.only("timestep_spacing", "leading", "linspace")
    if spacing == "leading":
        theirs.only("steps_offset", 1)
    return {"spacing": spacing}


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """The model of a folder, less what judges and refuses pictures (safety_checker)."""
    vocab, merges = clip.tokenizer_files(src / TOKENIZER)
    config = read_config(src, vocab)
    sources = {
        name: open_source(src, component, prefer_half=dtype == torch.float16)
        for name, component in COMPONENTS.items()
    }
    return Model(config, vocab, merges, sources)


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Our config.json from theirs; InputError for what we do not implement."""

    def read(translate: Callable[[str, dict], dict], name: str) -> dict:
        return translate(str(src / name), read_json(src / name))

    unet = read(unet_config, "unet/config.json")
    text = read(clip.text_config, "text_encoder/config.json")
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
        "vae": read(vae.vae_config, "vae/config.json"),
        "text": text,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "schedule": read(schedule_config, "scheduler/scheduler_config.json"),
    }
