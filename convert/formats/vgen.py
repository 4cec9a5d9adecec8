"""I2VGen-XL's original release (VGen): the files that it has, and how they are opened.

The release has neither config files nor a tokenizer, so its config is a constant of this module.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert import bpe
from anyv2v.convert.files import open_files, split_fused
from anyv2v.convert.formats import clip, vgen_names
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.errors import InputError
from anyv2v.weights.folder import clip_tokenizer
from anyv2v.weights.manifest import FORMAT

UNET, VAE, CLIP = FILES = (
    "i2vgen_xl_00854500.pth",
    "v2-1_512-ema-pruned.ckpt",
    "open_clip_pytorch_model.bin",
)
TABLES = {
    "unet": (UNET, vgen_names.UNET),
    "vae": (VAE, vgen_names.VAE),
    "text": (CLIP, vgen_names.TEXT),
    "vision": (CLIP, vgen_names.VISION),
}
"""Component (network, such as "unet") -> its file, and the rules that rename its parameters."""

UNET_SIZES = {
    "channels": 4,
    "widths": [320, 640, 1280, 1280],
    "attention": [True, True, True, False],
    "layers": 2,
    "head_dim": 64,
    "context_width": 1024,
    "groups": 32,
}
"""The section "unet" of `CONFIG`."""
CONFIG = {
    "format": FORMAT,
    "backbone": "i2vgen",
    "defaults": {"size": [512, 512], "frames": 16, "fps": 8},
    "unet": UNET_SIZES,
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
    # as in the Hugging Face folder; OpenCLIP's own code pads with id 0, "!"
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
    "injection": paper_sites(UNET_SIZES["attention"], UNET_SIZES["layers"]),
}
"""The config.json of the weights folder that the release is converted to."""


def read(src: Path, dtype: torch.dtype | None = None, config: dict = CONFIG) -> Model:
    """Opens a folder that holds the three files of the original release (`FILES`).

    dtype: ignored, because each file is published in one precision. config: our config.json for the
    model; a config other than the default describes the same blocks in other sizes. Raises
    InputError if a file is missing or cannot be read.
    """
    if missing := [name for name in FILES if not (src / name).is_file()]:
        raise InputError(f"{src}: has no {', '.join(missing)}; {', '.join(FILES)} go together")
    vocab, merges = bpe.tokenizer()
    opened = {
        name: split_fused(
            open_files(
                [src / name], src / name, vgen_names.TRAINING_KEYS, vgen_names.IGNORED_GLOBALS
            ),
            vgen_names.FUSED,
            vgen_names.PARTS,
        )
        for name in FILES
    }
    networks = {
        component: PublishedNetwork(opened[file].select(_is_needed(component)), table)
        for component, (file, table) in TABLES.items()
    }
    return Model(config, clip_tokenizer(vocab, merges), networks)


def _is_needed(component: str) -> Callable[[str], bool]:
    """A test of a tensor's name: whether the component's network has it."""
    patterns = vgen_names.NOT_NEEDED[component]
    return lambda name: not any(fnmatchcase(name, pattern) for pattern in patterns)
