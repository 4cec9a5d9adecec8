"""Hugging Face folders: how any is opened, and what that of I2VGen-XL holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.convert.files import open_weights
from anyv2v.convert.formats import clip, i2vgen, vae
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.convert.rename import Rule
from anyv2v.errors import InputError
from anyv2v.weights.folder import clip_tokenizer
from anyv2v.weights.manifest import FORMAT, read_json

INDEX = "model_index.json"
"""The file that makes a folder a model of diffusers."""
TOKENIZER = "tokenizer"
"""The subfolder of the tokenizer's files."""


@dataclass(frozen=True)
class Component:
    """Where a Hugging Face folder holds one network, and how its parameters are renamed."""

    folder: str
    """Name of the subfolder that holds the network."""
    stem: str
    """Stem of the weight files in it, a key of `anyv2v.convert.files.STEMS`."""
    table: Callable[[list[str]], tuple[Rule, ...]]
    """The parameter names in the weight files -> the rules that rename them to ours."""


COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: i2vgen.UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
    "vision": Component("image_encoder", "model", lambda names: clip.VISION),
}
"""Our name of each network of I2VGen-XL -> where it is."""


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a Hugging Face folder of I2VGen-XL.

    dtype: the dtype to convert to; if it is float16, half-precision weight files are preferred to
    others. Raises InputError if a file is missing, or if the model is not implemented.
    """
    return open_model(src, COMPONENTS, read_config, prefer_half=dtype == torch.float16)


def open_model(
    src: Path,
    components: Mapping[str, Component],
    read_config: Callable[[Path, dict[str, int]], dict],
    prefer_half: bool,
) -> Model:
    """Opens the tokenizer, the configs and the weights of a Hugging Face folder.

    components: our name of each network -> where it is. read_config: function of (folder,
    vocabulary as token -> id) that returns our config.json. prefer_half: whether half-precision
    weight files are preferred to others. Raises InputError if a file is missing or cannot be read.
    """
    vocab, merges = clip.tokenizer_files(src / TOKENIZER)
    config = read_config(src, vocab)
    networks = {name: open_network(src, c, prefer_half) for name, c in components.items()}
    return Model(config, clip_tokenizer(vocab, merges), networks)


def open_network(src: Path, component: Component, prefer_half: bool) -> PublishedNetwork:
    """Opens the weights of one network of the Hugging Face folder `src`.

    prefer_half: whether half-precision files are preferred to others. Raises InputError if there
    are no weights or they cannot be read.
    """
    weights = open_weights(src / component.folder, component.stem, prefer_half)
    # older files store the buffer position_ids, which is just 0, 1, 2, ...
    weights = weights.select(lambda name: name.split(".")[-1] != "position_ids")
    return PublishedNetwork(weights, component.table(list(weights.layout)))


def translate(path: Path, to_ours: Callable[[str, dict], dict]) -> dict:
    """Reads a published config file and returns what `to_ours` makes of it.

    to_ours: function of (the path, for error messages; the file's content) that returns a section
    of our config.json. Raises InputError if the file does not hold a JSON object.
    """
    return to_ours(str(path), read_json(path))


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Translates the config files of an I2VGen-XL folder to our config.json.

    vocab: the tokenizer's token -> id. Raises InputError if a network is not implemented, or if the
    networks and the tokenizer do not match each other.
    """
    unet = translate(src / "unet/config.json", i2vgen.unet_config)
    text = translate(src / "text_encoder/config.json", clip.text_config)
    vision = translate(src / "image_encoder/config.json", clip.vision_config)
    preprocess = translate(
        src / "feature_extractor/preprocessor_config.json", clip.preprocess_config
    )
    context_dim = unet["context_width"]
    for name, dim in (
        ("text_encoder: hidden_size", text["width"]),
        ("image_encoder: projection_dim", vision["projection_width"]),
    ):
        if dim != context_dim:
            raise InputError(f"{src}: {name} is {dim}; unet: cross_attention_dim is {context_dim}")
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
        "vae": translate(src / "vae/config.json", vae.vae_config),
        "text": text,
        "vision": vision,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "preprocess": preprocess,
        "schedule": translate(src / "scheduler/scheduler_config.json", i2vgen.schedule_config),
        "injection": paper_sites(unet["attention"], unet["layers"]),
    }


def check_vocabulary(src: Path, vocab: dict[str, int], size: int) -> None:
    """Checks that all ids of a tokenizer are less than the text encoder's number of embeddings.

    src: the model's folder, for the error message. vocab: token -> id. size: the number of
    embeddings. Raises InputError otherwise.
    """
    if (last := max(vocab.values())) >= size:
        raise InputError(
            f"{src}: tokenizer: ids go up to {last}; text_encoder: vocab_size is {size}"
        )
