"""Write a model in the format of the original release, from a Hugging Face folder of it.

The names are derived from the Hugging Face ones by counting blocks, independently of the rules of
`anyv2v convert`; a test compares them with the names and shapes of the released files.
"""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from anyv2v.convert import bpe
from tests.oracles import snapshot as hf

UNET, VAE, CLIP = FILES = (
    "i2vgen_xl_00854500.pth",
    "v2-1_512-ema-pruned.ckpt",
    "open_clip_pytorch_model.bin",
)
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLAIN = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "image_latents_proj_in": "local_image_concat",
    "image_latents_context_embedding": "local_image_embedding",
    "image_latents_temporal_encoder.norm1": "local_temporal_encoder.layers.0.0.norm",
    "image_latents_temporal_encoder.attn1": "local_temporal_encoder.layers.0.0.fn",
    "image_latents_temporal_encoder.ff.net.0.proj": "local_temporal_encoder.layers.0.1.net.0.0",
    "image_latents_temporal_encoder.ff.net.2": "local_temporal_encoder.layers.0.1.net.2",
    "transformer_in": "input_blocks.0.1",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def unet_name(name: str) -> str:
    """Return VGen's name of a UNet parameter."""
    for ours, theirs in PLAIN.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    block = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d))?\.(\w+)\.(\d)\.(.+)", name)
    if block is None:
        return name
    side, level, kind, layer, rest = block.groups()
    level, layer = int(level or 0), int(layer)
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}." + rest.replace("conv", "op")
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 3}.{rest}"
    part = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}[kind]
    place = {
        "down": f"input_blocks.{1 + 3 * level + layer}.{part}",
        "mid": f"middle_block.{3 * layer if part == 0 else part}",
        "up": f"output_blocks.{3 * level + layer}.{part}",
    }[side]
    if kind == "resnets":
        layer_name, suffix = rest.split(".")
        return f"{place}.{RESNET[layer_name]}.{suffix}"
    return f"{place}.temopral_conv.{rest}" if kind == "temp_convs" else f"{place}.{rest}"


def vae_name(name: str) -> str:
    """Return Stable Diffusion's name of an autoencoder parameter."""
    for ours, theirs in (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
        (r"down_blocks\.", "down."),
        (r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}"),
        (r"resnets", "block"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"downsamplers\.0", "downsample"),
        (r"upsamplers\.0", "upsample"),
        (r"conv_norm_out", "norm_out"),
    ):
        name = re.sub(ours, theirs, name)
    return f"first_stage_model.{name}"


def clip_name(name: str) -> str:
    """Return OpenCLIP's name of a parameter of either tower."""
    for ours, theirs in (
        ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding", "visual.conv1"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("visual_projection.weight", "visual.proj"),
        *CLIP_LAYER.items(),
    ):
        name = name.replace(ours, theirs)
    return name


def renamed(tensors: dict[str, Tensor], name_of: Callable[[str], str]) -> dict[str, Tensor]:
    """Give tensors the names and shapes of the release, with query, key and value stacked."""
    state = {}
    for name, tensor in tensors.items():
        if re.search(r"(temp_attentions\.\d|transformer_in)\.proj_(in|out)\.weight", name):
            tensor = tensor[..., None]
        elif re.search(r"mid_block\.attentions\.0\.to_.+\.weight", name):
            tensor = tensor[..., None, None]
        elif name == "visual_projection.weight":
            tensor = tensor.T.contiguous()
        state[name_of(name)] = tensor
    fused = {
        **{
            f"{m[1]}.in_proj_{m[2]}": f"{m[1]}.{{}}_proj.{m[2]}"
            for m in matches(r"(.+attn)\.q_proj\.(\w+)", state)
        },
        **{
            f"{m[1]}.to_qkv.weight": f"{m[1]}.to_{{}}.weight"
            for m in matches(r"(.+fn)\.to_q\.weight", state)
        },
    }
    for name, part in fused.items():
        state[name] = torch.cat([state.pop(part.format(letter)) for letter in "qkv"])
    return state


def matches(pattern: str, names) -> list[re.Match]:
    """List the matches of a pattern with whole names."""
    return [match for name in names if (match := re.fullmatch(pattern, name))]


def clip_merges() -> list[tuple[str, str]]:
    """Read the merges from the file that comes with the package."""
    with gzip.open(bpe.MERGES, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]


def write_huggingface(folder: Path, preset: str, seed: int = 1) -> None:
    """Write a snapshot with CLIP's own tokenizer."""
    with mock.patch.object(hf, "learn_merges", return_value=clip_merges()):
        hf.write_snapshot(folder, preset, seed)


def write_original(folder: Path, huggingface: Path) -> None:
    """Write the weights of a Hugging Face folder as the files of the original release."""
    folder.mkdir()

    def load(component: str, stem: str) -> dict[str, Tensor]:
        return load_file(huggingface / component / f"{stem}.safetensors")

    unet = renamed(load("unet", "diffusion_pytorch_model"), unet_name)
    torch.save({"state_dict": unet, "step": 854500}, folder / UNET)
    del unet
    # the file also holds Stable Diffusion, for which a few of its tensors stand here
    state = {
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "model.diffusion_model.time_embed.0.weight": torch.zeros(8, 2),
        "cond_stage_model.model.positional_embedding": torch.zeros(77, 8),
        "model_ema.num_updates": torch.tensor(7),
        **renamed(load("vae", "diffusion_pytorch_model"), vae_name),
    }
    torch.save({"state_dict": state, "global_step": 1, "callbacks": {}}, folder / VAE)
    towers = renamed({**load("text_encoder", "model"), **load("image_encoder", "model")}, clip_name)
    dim = towers["visual.proj"].shape[1]
    towers |= {"text_projection": torch.zeros(dim, dim), "logit_scale": torch.tensor(4.6)}
    torch.save(towers, folder / CLIP)
