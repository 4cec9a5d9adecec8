"""The files of I2VGen-XL's original release, opened.

They come with neither configs nor a tokenizer, so these stand here.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert import bpe
from anyv2v.convert.files import gather, split
from anyv2v.convert.formats import clip
from anyv2v.convert.formats import vgen_names as original_names
from anyv2v.convert.model import Model, Source
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT

UNET, VAE, CLIP = FILES = (
    "i2vgen_xl_00854500.pth",
    "v2-1_512-ema-pruned.ckpt",
    "open_clip_pytorch_model.bin",
)
TABLES = {
    "unet": (UNET, original_names.UNET),
    "vae": (VAE, original_names.VAE),
    "text": (CLIP, original_names.TEXT),
    "vision": (CLIP, original_names.VISION),
}

SIZES = {
    "channels": 4,
    "widths": [320, 640, 1280, 1280],
    "attention": [True, True, True, False],
    "layers": 2,
    "head_dim": 64,
    "context_width": 1024,
    "groups": 32,
}
CONFIG = {
    "format": FORMAT,
    "backbone": "i2vgen",
    "defaults": {"size": [512, 512], "frames": 16, "fps": 8},
    "unet": SIZES,
    "vae": {
        "channels": 3,
        "latent_channels": 4,
        "widths": [128, 256, 512, 512],
        "layers": 2,
        "groups": 32,
        "scaling_factor": 0.18215,
    },
    "text": {
        "vocab_size": 49408,
        "tokens": 77,
        "width": 1024,
        "heads": 16,
        "layers": 24,
        "mlp_width": 4096,
        "activation": "gelu",
        "norm_eps": 1e-5,
    },
    "vision": {
        "image_size": 224,
        "patch_size": 14,
        "width": 1280,
        "heads": 16,
        "layers": 32,
        "mlp_width": 5120,
        "activation": "gelu",
        "norm_eps": 1e-5,
        "projection_width": 1024,
    },
    # as the Hugging Face form has it; OpenCLIP's own code pads with id 0, "!"
    "tokenizer": {
        "start": bpe.SPECIAL[0],
        "end": bpe.SPECIAL[1],
        "pad": bpe.SPECIAL[1],
        "unknown": bpe.SPECIAL[1],
    },
    "preprocess": {
        "size": 224,
        "mean": clip.PREPROCESS_DEFAULTS["image_mean"],
        "std": clip.PREPROCESS_DEFAULTS["image_std"],
    },
    "schedule": {"train_steps": 1000, "steps_offset": 1},
    "injection": paper_sites(SIZES["attention"], SIZES["layers"]),
}


def read(src: Path, dtype: torch.dtype | None = None, config: dict = CONFIG) -> Model:
    """The model of a folder with the release's files. dtype: not looked at, there is one of each.

    config: of a model with the same blocks in other sizes.
    """
    if absent := [name for name in FILES if not (src / name).is_file()]:
        raise InputError(f"{src}: has no {', '.join(absent)}; {', '.join(FILES)} go together")
    vocab, merges = bpe.tokenizer()
    opened = {
        name: split(
            gather([src / name], src / name, original_names.BESIDE_WEIGHTS, original_names.INERT),
            original_names.FUSED,
            original_names.PARTS,
        )
        for name in FILES
    }
    sources = {
        component: Source(opened[file].only(_needed(component)), table)
        for component, (file, table) in TABLES.items()
    }
    return Model(config, vocab, merges, sources)


def _needed(component: str) -> Callable[[str], bool]:
    patterns = original_names.NOT_NEEDED[component]
    return lambda name: not any(fnmatchcase(name, pattern) for pattern in patterns)
