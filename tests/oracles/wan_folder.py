"""Folders of Wan for diffusers, of any sizes and without diffusers: for changes, and full size.

The names of tensors are those of the converter's tables, which other tests compare with diffusers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.backbones.wan.backbone import Wan
from anyv2v.convert.formats import wan_names
from anyv2v.convert.rename import rename
from anyv2v.runtime.meta import shapes_of
from anyv2v.weights.tensors import Layout, write
from tests.oracles import umt5_tokenizer

# the smallest of the form
LATENTS, WIDTH = 6, 8
SMALLEST = {
    "transformer": {
        **{"in_channels": LATENTS, "out_channels": LATENTS, "dim": 16, "heads": 1, "ff_dim": 8},
        **{"layers": 2, "text_dim": WIDTH, "text_tokens": 512, "time_dim": 8, "patch": [1, 2, 2]},
        **{"positions": 1024, "eps": 1e-6, "clean_first_frame": True},
    },
    "vae": {
        **{"channels": 3, "patch": 2, "latent_channels": LATENTS, "layers": 1, "residual": True},
        **{"encoder_channels": [4, 4], "decoder_channels": [4, 4], "temporal": [True]},
        **{"mean": [0.1] * LATENTS, "std": [1.1] * LATENTS},
    },
    "text": {
        **{"vocab_size": 400, "tokens": 512, "width": WIDTH, "heads": 2, "head_dim": 4},
        **{"layers": 1, "mlp_width": 8, "buckets": 8, "max_distance": 128, "norm_eps": 1e-6},
    },
}
FOLDERS = {
    "transformer": ("transformer/diffusion_pytorch_model", wan_names.TRANSFORMER),
    "vae": ("vae/diffusion_pytorch_model", wan_names.VAE),
    "text": ("text_encoder/model", wan_names.TEXT),
}


def configs(sections: dict) -> dict[str, dict]:
    """Name of a file -> the published config of networks with these sections of our config."""
    transformer, vae, text = (sections[name] for name in ("transformer", "vae", "text"))
    pixels, base = vae["channels"] * vae["patch"] ** 2, vae["encoder_channels"][0]
    return {
        "model_index.json": {
            **{"_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": True},
            **{"transformer_2": [None, None]},
        },
        "scheduler/scheduler_config.json": {
            **{"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
            **{"use_flow_sigmas": True, "flow_shift": 5.0, "num_train_timesteps": 1000},
        },
        "transformer/config.json": {
            **{"_class_name": "WanTransformer3DModel", "qk_norm": "rms_norm_across_heads"},
            "num_attention_heads": transformer["heads"],
            "attention_head_dim": transformer["dim"] // transformer["heads"],
            "in_channels": transformer["in_channels"],
            "out_channels": transformer["out_channels"],
            "ffn_dim": transformer["ff_dim"],
            "num_layers": transformer["layers"],
            "text_dim": transformer["text_dim"],
            "freq_dim": transformer["time_dim"],
            "patch_size": transformer["patch"],
            **{"eps": transformer["eps"], "image_dim": None},
        },
        "vae/config.json": {
            **{"_class_name": "AutoencoderKLWan", "is_residual": True},
            **{"base_dim": base, "decoder_base_dim": vae["decoder_channels"][0]},
            "dim_mult": [width // base for width in vae["encoder_channels"]],
            "z_dim": vae["latent_channels"],
            "patch_size": vae["patch"],
            "num_res_blocks": vae["layers"],
            "temperal_downsample": vae["temporal"],
            **{"in_channels": pixels, "out_channels": pixels},
            **{"latents_mean": vae["mean"], "latents_std": vae["std"]},
        },
        "text_encoder/config.json": {
            **{"model_type": "umt5", "vocab_size": text["vocab_size"], "d_model": text["width"]},
            **{"num_heads": text["heads"], "d_kv": text["head_dim"], "d_ff": text["mlp_width"]},
            "num_layers": text["layers"],
            "relative_attention_num_buckets": text["buckets"],
        },
    }


def write_folder(
    folder: Path,
    sections: dict,
    shards: dict[str, int],
    text_dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Writes the folder, one tensor after the other, and returns the names of its files of weights.

    sections: those of our config.json. shards: component -> number of its files, if not one.
    text_dtype: of the text encoder.
    """
    for name, values in configs(sections).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    (folder / "tokenizer").mkdir()
    umt5_tokenizer.write(folder / "tokenizer")
    files = []
    for component, shapes in shapes_of(Wan.networks(sections)).items():
        stem, table = FOLDERS[component]
        dtype = text_dtype if component == "text" else torch.float32
        layout: Layout = {
            new.name: (dtype, new.their_shape(shapes[ours]))
            for ours, new in rename(shapes, table, to="theirs").items()
        }
        if component == "text":
            layout[wan_names.SECOND_NAME] = layout[wan_names.EMBEDDING]
        files += _write_network(folder, stem, layout, shards.get(component, 1))
    return files


def _write_network(folder: Path, stem: str, layout: Layout, count: int) -> list[str]:
    pool = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(0)) * 0.2

    def drawn(name: str) -> Tensor:
        dtype, shape = layout[name]
        name = wan_names.EMBEDDING if name == wan_names.SECOND_NAME else name
        # another part of the same numbers in every tensor
        start, size = sum(name.encode()) % len(pool), math.prod(shape)
        x = pool.roll(-start).to(dtype)
        return x.repeat(-(-size // len(x)))[:size].view(shape)

    names = sorted(layout)
    if count == 1:
        write(folder / f"{stem}.safetensors", layout, drawn)
        return [f"{stem}.safetensors"]
    files = [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, file in enumerate(files):
        write(folder / file, {name: layout[name] for name in names[i::count]}, drawn)
    where = {name: Path(file).name for i, file in enumerate(files) for name in names[i::count]}
    index = f"{stem}.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [index, *files]
