"""A published folder of Wan for the changes: of smallest networks, and without diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from anyv2v.backbones.wan.backbone import Wan
from anyv2v.convert.formats import wan_names
from anyv2v.convert.rename import rename
from anyv2v.runtime.meta import shapes_of
from tests.oracles import umt5_tokenizer

LATENTS, WIDTH = 6, 8
CONFIG = {
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
FILES = {
    "model_index.json": {
        **{"_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": True},
        **{"transformer_2": [None, None]},
    },
    "scheduler/scheduler_config.json": {
        **{"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
        **{"use_flow_sigmas": True, "flow_shift": 5.0, "num_train_timesteps": 1000},
    },
    "transformer/config.json": {
        **{"_class_name": "WanTransformer3DModel", "num_attention_heads": 1, "eps": 1e-6},
        **{"attention_head_dim": 16, "in_channels": LATENTS, "out_channels": LATENTS},
        **{"ffn_dim": 8, "num_layers": 2, "text_dim": WIDTH, "freq_dim": 8},
        **{"patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "image_dim": None},
    },
    "vae/config.json": {
        **{"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": LATENTS, "patch_size": 2},
        **{"dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]},
        **{"is_residual": True, "in_channels": 12, "out_channels": 12},
        **{"latents_mean": [0.1] * LATENTS, "latents_std": [1.1] * LATENTS},
    },
    "text_encoder/config.json": {
        **{"model_type": "umt5", "vocab_size": 400, "d_model": WIDTH, "num_heads": 2, "d_kv": 4},
        **{"num_layers": 1, "d_ff": 8, "relative_attention_num_buckets": 8},
    },
}
STEM = "transformer/diffusion_pytorch_model"
SHARDS = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = f"{STEM}.safetensors.index.json"
VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def write(folder: Path) -> None:
    """Writes the folder."""
    generator = torch.Generator().manual_seed(0)
    tables = {"transformer": wan_names.TRANSFORMER, "vae": wan_names.VAE, "text": wan_names.TEXT}
    theirs = {}
    for component, shapes in shapes_of(Wan.networks(CONFIG)).items():
        names = rename(shapes, tables[component], to="theirs")
        theirs[component] = {
            new.name: 0.2 * torch.randn(new.their_shape(shapes[ours]), generator=generator)
            for ours, new in names.items()
        }
    theirs["text"][wan_names.SECOND_NAME] = theirs["text"][wan_names.EMBEDDING].clone()
    for name, values in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    names = sorted(theirs["transformer"])
    for i, shard in enumerate(SHARDS):
        save_file({name: theirs["transformer"][name] for name in names[i::2]}, folder / shard)
    where = {name: Path(SHARDS[i]).name for i in (0, 1) for name in names[i::2]}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    save_file(theirs["vae"], folder / VAE)
    save_file(theirs["text"], folder / TEXT)
    (folder / "tokenizer").mkdir()
    umt5_tokenizer.write(folder / "tokenizer")
