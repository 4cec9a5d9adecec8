"""SEINE as it is published: the file of its UNet, and the folder of Stable Diffusion 1.4 beside it.

Of Stable Diffusion the autoencoder, the text encoder, the tokenizer and the sizes of the UNet are
read; the weights of its UNet are not, because those of SEINE's replace them all.
"""

from dataclasses import replace
from pathlib import Path

import torch

from anyv2v.backbones.seine.sites import paper_sites
from anyv2v.convert.files import Weights, open_files
from anyv2v.convert.formats import clip, stable_diffusion, vae
from anyv2v.convert.formats.huggingface import (
    TOKENIZER,
    check_vocabulary,
    open_model,
    translate,
)
from anyv2v.convert.formats.unet import ATTENTION, RESNET, transformer, unet
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.convert.rename import Rule, prefixed, rules
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT

UNET_FILE = "seine.pt"
"""The file of the UNet, which torch.save wrote."""
ENTRY = "ema"
"""The entry of that file that holds the UNet: the moving average of its weights in training."""
FOLDER = "stable-diffusion-v1-4"
"""The folder of Stable Diffusion, beside that file."""

FREQUENCIES = "attn_temp.rotary_emb.freqs"
"""The end of the names of the rotary frequencies, one parameter that is saved in every block."""
BLOCK = "transformer_blocks.0"
"""The only block of a transformer, within its names."""
MID_BLOCK = f"mid_block.attentions.0.{BLOCK}"
"""The block whose copy of the frequencies counts: the last one that the original code loads."""
TEMPORAL = (
    Rule("norm_temp", "norm_temporal"),
    *prefixed("attn_temp", "temporal", ATTENTION),
    Rule("attn_temp.time_rel_pos_bias.relative_attention_bias", "temporal.position_bias"),
)
UNET = (
    *unet(
        (
            *prefixed("resnets.{}", "res.{}", RESNET),
            # the projections are 1x1 convolutions in the checkpoint, matrices here
            *prefixed("attentions.{}", "spatial.{}", transformer("cross", squeeze=2)),
            *prefixed(f"attentions.{{}}.{BLOCK}", "spatial.{}.block", TEMPORAL),
        )
    ),
    *rules({f"{MID_BLOCK}.{FREQUENCIES}": "rotary.frequencies"}),
)
"""The rules that rename the parameters of SEINE's UNet."""

COMPONENTS = {name: stable_diffusion.COMPONENTS[name] for name in ("vae", "text")}
"""Our names of the networks that are taken from the folder -> where they are in it."""
LEVELS = 4
"""Number of levels of the UNet, whose blocks the original code chooses whatever the config says."""
LEAST_HEAD_DIM = 32
"""Number of channels of a head that are rotated, so the least that a head may have."""


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a folder with `UNET_FILE` and the folder of Stable Diffusion.

    dtype: the dtype to convert to; if it is float16, half-precision weight files are preferred to
    others. Raises InputError if a file is missing, or if the model is not implemented.
    """
    if not (src / FOLDER).is_dir():
        raise InputError(f"{src}: holds {UNET_FILE}, but not the folder {FOLDER} beside it")
    half = dtype == torch.float16
    model = open_model(src / FOLDER, COMPONENTS, read_config, prefer_half=half)
    weights = open_files([src / UNET_FILE], src / UNET_FILE, entry=ENTRY)
    network = PublishedNetwork(_one_of_the_frequencies(weights), UNET)
    return replace(model, networks={"unet": network, **model.networks})


def _one_of_the_frequencies(weights: Weights) -> Weights:
    """Returns the UNet's weights without the copies of the rotary frequencies that do not count.

    Raises InputError if a block lacks its copy, or a copy has another shape than the rest.
    """
    end = ".attn_temp.to_q.weight"
    blocks = [name.removesuffix(end) for name in weights.layout if name.endswith(end)]
    copies = {f"{block}.{FREQUENCIES}" for block in blocks} - {f"{MID_BLOCK}.{FREQUENCIES}"}
    if missing := sorted(copies - weights.layout.keys()):
        raise InputError(f"{weights.origin}: missing: {', '.join(missing)}")
    _, right = weights.layout.get(f"{MID_BLOCK}.{FREQUENCIES}", (None, (LEAST_HEAD_DIM // 2,)))
    for name in sorted(copies):
        if (shape := weights.layout[name][1]) != right:
            raise InputError(f"{weights.origin}: {name} is {shape}, should be {right}")
    return weights.select(lambda name: name not in copies)


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Translates the config files of Stable Diffusion's folder to our config.json.

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
        "backbone": "seine",
        "components": ["unet", *COMPONENTS],
        "defaults": {"size": [512, 512], "frames": 16, "fps": 8},
        "unet": unet,
        "vae": translate(src / "vae/config.json", vae.vae_config),
        "text": text,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "schedule": translate(src / "scheduler/scheduler_config.json", schedule_config),
        "injection": paper_sites(LEVELS, unet["layers"]),
    }


def unet_config(where: str, values: dict) -> dict:
    """Translates the config of Stable Diffusion's UNet to the section "unet" of our config.json.

    where: the file, as error messages name it. values: its content, of which the types of blocks
    and the number of input channels do not count. Raises InputError if the network that it
    describes is not implemented.
    """
    fixed = stable_diffusion.UNET_FIXED
    config = HFConfig(where, values, stable_diffusion.UNET_DEFAULTS | fixed)
    config.one_of("_class_name", "UNet2DConditionModel")
    config.one_of("use_linear_projection", False)
    for name, value in fixed.items():
        config.one_of(name, *((1, 1.0) if value == 1 and value is not True else (value,)))
    level_channels = config.counts("block_out_channels")
    if len(level_channels) != LEVELS:
        raise config.error("block_out_channels", f"{LEVELS} numbers are needed")
    return {
        "channels": config.one_of("out_channels", 4),
        "widths": level_channels,
        "heads": _heads(config, level_channels),
        "layers": config.count("layers_per_block"),
        "context_width": config.count("cross_attention_dim"),
        "groups": config.divisor("norm_num_groups", level_channels, "block_out_channels"),
    }


def _heads(config: HFConfig, level_channels: list[int]) -> list[int]:
    """Returns the number of heads at each level, from full resolution down."""
    # diffusers means the number of heads, under a wrong name that old files keep
    name = "attention_head_dim"
    if isinstance(config[name], list):
        heads = config.counts(name)
    else:
        heads = [config.count(name)] * len(level_channels)
    if len(heads) != len(level_channels):
        raise config.error(name, f"one number, or {len(level_channels)}, are needed")
    for channels, count in zip(level_channels, heads, strict=True):
        if channels % count or channels // count < LEAST_HEAD_DIM:
            raise config.error(
                name,
                f"these are numbers of heads, each of at least {LEAST_HEAD_DIM} of the "
                f"{channels} channels",
            )
    return heads


def schedule_config(where: str, values: dict) -> dict:
    """Returns the section "schedule" of our config.json, after checks of scheduler_config.json.

    SEINE has betas of its own, so of Stable Diffusion's schedule only the offset of the timesteps
    and the end of a run count. where: the file, as error messages name it. values: its content.
    Raises InputError at the first field that has another value than the published one.
    """
    HFConfig(where, values, {"_class_name": None}).one_of("_class_name", "PNDMScheduler")
    stable_diffusion.schedule_config(where, values)
    return {"train_steps": 1000, "steps_offset": 1}
