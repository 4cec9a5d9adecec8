"""A Hugging Face folder of I2VGen-XL, opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert.files import open_weights
from anyv2v.convert.formats import clip, i2vgen, vae
from anyv2v.convert.model import Model, Source
from anyv2v.convert.rename import Rule
from anyv2v.errors import InputError
from anyv2v.weights.manifest import FORMAT, read_json

INDEX = "model_index.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Component:
    """One network: its folder, the stem of its weight files, and the rules for its names."""

    folder: str
    stem: str
    table: Callable[[list[str]], tuple[Rule, ...]]


COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: i2vgen.UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
    "vision": Component("image_encoder", "model", lambda names: clip.VISION),
}


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """The model of a folder; files of half precision come first if that is what is wanted."""
    vocab, merges = clip.tokenizer_files(src / TOKENIZER)
    config = read_config(src, vocab)
    sources = {
        name: open_source(src, component, prefer_half=dtype == torch.float16)
        for name, component in COMPONENTS.items()
    }
    return Model(config, vocab, merges, sources)


def open_source(src: Path, component: Component, prefer_half: bool) -> Source:
    """One network of a folder; its files of half precision come first if they are preferred."""
    weights = open_weights(src / component.folder, component.stem, prefer_half)
    # a buffer of older files: 0, 1, 2, ...
    weights = weights.only(lambda name: name.split(".")[-1] != "position_ids")
    return Source(weights, component.table(list(weights.layout)))


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Our config.json from theirs; InputError for what we do not implement."""

    def read(translate: Callable[[str, dict], dict], name: str) -> dict:
        return translate(str(src / name), read_json(src / name))

    unet = read(i2vgen.unet_config, "unet/config.json")
    text = read(clip.text_config, "text_encoder/config.json")
    vision = read(clip.vision_config, "image_encoder/config.json")
    preprocess = read(clip.preprocess_config, "feature_extractor/preprocessor_config.json")
    context = unet["context_width"]
    for name, width in (
        ("text_encoder: hidden_size", text["width"]),
        ("image_encoder: projection_dim", vision["projection_width"]),
    ):
        if width != context:
            raise InputError(f"{src}: {name} is {width}; unet: cross_attention_dim is {context}")
    if preprocess["size"] != vision["image_size"]:
        raise InputError(
            f"{src}: feature_extractor: crop_size is {preprocess['size']}; "
            f"image_encoder: image_size is {vision['image_size']}"
        )
    check_vocabulary(src, vocab, text["vocab_size"])
    return {
        "format": FORMAT,
        "backbone": "i2vgen",
        "defaults": {"size": [512, 512], "frames": 16, "fps": 8},
        "unet": unet,
        "vae": read(vae.vae_config, "vae/config.json"),
        "text": text,
        "vision": vision,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "preprocess": preprocess,
        "schedule": read(i2vgen.schedule_config, "scheduler/scheduler_config.json"),
        "injection": paper_sites(unet["attention"], unet["layers"]),
    }


def check_vocabulary(src: Path, vocab: dict[str, int], size: int) -> None:
    if (last := max(vocab.values())) >= size:
        raise InputError(
            f"{src}: tokenizer: ids go up to {last}; text_encoder: vocab_size is {size}"
        )
