"""Loading a CLIP from any folder that holds one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import cast

import torch
from torch import nn

from anyv2v.clip.model import CLIPModel, TextEmbedder, builders, size_name
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.text import TextConfig
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.config import config_errors, section
from anyv2v.convert import cache
from anyv2v.convert.formats.whole_clip import LONGEST_ORIGIN, is_whole_clip
from anyv2v.convert.published import convert
from anyv2v.convert.repositories import SCORES, VIDEOS
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import scratch
from anyv2v.runtime.device import choose_device
from anyv2v.weights import hub
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import CLIP, ORIGIN
from anyv2v.weights_folders import expected_shapes


def load(
    folder: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> CLIPModel:
    """Loads a CLIP.

    folder: a folder that `anyv2v convert` wrote, of a CLIP or of a model that has CLIP's image
    encoder, such as I2VGen-XL (the CLIP has no text encoder then); or a published CLIP, as
    transformers or OpenCLIP save it, which is converted to a temporary folder first: that takes as
    much disk space as the weights, and the time to write them; or a repository of the hub, see
    `convert.cache.located`. device: None is cuda if there is
    one, else cpu. dtype: of the weights. Raises InputError if the folder is damaged or holds no
    CLIP, or if the disk has too little space.
    """
    device = choose_device(device)
    path = hub.only_snapshot(cache.located(folder, expected_shapes, (SCORES, VIDEOS)))
    if not is_whole_clip(path):
        return _load(Checkpoint.open(path), device, dtype)
    with scratch(Path(gettempdir())) as temporary:
        convert(path, temporary / "clip", expected_shapes)
        return _load(Checkpoint.open(temporary / "clip"), device, dtype)


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> CLIPModel:
    config, folder = checkpoint.config, checkpoint.folder
    if not isinstance(config.get("vision"), dict) or "preprocess" not in config:
        kind = config.get("model", config.get("backbone"))
        raise InputError(f"{folder}: holds {kind}, without CLIP's image encoder; a CLIP is needed")
    with config_errors(folder):
        vision = section(config, "vision", VisionConfig)
        preprocess = section(config, "preprocess", PreprocessConfig)
        unbuilt = builders(config) if config.get("model") == CLIP else {}

    def build(name: str) -> nn.Module:
        with config_errors(folder):
            return unbuilt[name]() if unbuilt else VisionEncoder(vision)

    network = checkpoint.load("vision", partial(build, "vision"), device, dtype)
    text = tokenizer = None
    if unbuilt:
        loaded = checkpoint.load("text", partial(build, "text"), device, dtype)
        text, tokenizer = cast(TextEmbedder, loaded), _tokenizer(checkpoint)
    return CLIPModel(
        name=f"{size_name(vision)} {_origin(config)}".strip(),
        fingerprint=checkpoint.fingerprint,
        vision=cast(VisionEncoder, network),
        preprocess=preprocess,
        text=text,
        tokenizer=tokenizer,
    )


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    with config_errors(checkpoint.folder):
        text = section(checkpoint.config, "text", TextConfig)
        special = section(checkpoint.config, "tokenizer", TokenizerConfig)
    folder = checkpoint.folder / "tokenizer"
    return Tokenizer.load(folder, special, text.tokens, text.vocab_size)


def _origin(config: dict) -> str:
    """What the weights were trained on, or the model that they came with."""
    origin = config.get(ORIGIN, config.get("model", config.get("backbone")))
    # it becomes part of keys and tables, which somebody else's text must not break
    return " ".join(origin.split())[:LONGEST_ORIGIN] if isinstance(origin, str) else ""
