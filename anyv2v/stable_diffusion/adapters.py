"""Loading adapters for Stable Diffusion from weights folders that `anyv2v convert` wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.config import config_errors, section
from anyv2v.convert import cache
from anyv2v.convert.repositories import ADAPTER
from anyv2v.errors import InputError
from anyv2v.runtime.meta import shapes_of
from anyv2v.stable_diffusion.ip_adapter import IPAdapterConfig, IPAdapterNetwork, pixels_of
from anyv2v.stable_diffusion.t2i_adapter import T2IAdapterConfig, T2IAdapterNetwork
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import IP_ADAPTER, T2I_ADAPTER

Builders = dict[str, Callable[[], nn.Module]]
"""Name of a network -> the function that builds it, without loading weights."""


def ip_adapter_builders(config: dict) -> Builders:
    """Returns the functions that build an IP-Adapter's networks, "adapter" and "vision".

    config: the contents of the weights folder's config.json. The networks are built without
    loading weights. Raises InputError if a section of the config is missing or wrong, or the
    sections do not match each other.
    """
    adapter, vision = (
        section(config, "adapter", IPAdapterConfig),
        section(config, "vision", VisionConfig),
    )
    if adapter.image_dim != vision.projection_dim:
        raise InputError(
            f"adapter: image_width {adapter.image_dim} is not vision: projection_width "
            f"{vision.projection_dim}"
        )
    size = section(config, "preprocess", PreprocessConfig).size
    if size != vision.image_size:
        raise InputError(f"preprocess: size {size} is not vision: image_size {vision.image_size}")
    return {
        "adapter": lambda: IPAdapterNetwork(adapter),
        "vision": lambda: VisionEncoder(vision),
    }


def t2i_adapter_builders(config: dict) -> Builders:
    """Returns the function that builds a T2I-Adapter's only network, "adapter".

    config: the contents of the weights folder's config.json. The network is built without loading
    weights. Raises InputError if the section "adapter" is missing or wrong.
    """
    adapter = section(config, "adapter", T2IAdapterConfig)
    return {"adapter": lambda: T2IAdapterNetwork(adapter)}


def load_ip_adapter(
    folder: str | Path, reference: np.ndarray, device: torch.device, dtype: torch.dtype
) -> tuple[IPAdapterNetwork, Tensor]:
    """Loads an IP-Adapter and encodes a reference image with it.

    folder: weights folder that `anyv2v convert` wrote, or a repository of the hub, see
    `convert.cache.located`. reference: uint8 RGB (h, w, 3). Returns the
    adapter's network and image tokens (2, m, c') in `dtype`: first those for no image, then those
    of `reference`. The image encoder is freed. Raises InputError if the folder is damaged or holds
    something else, or the reference is too narrow.
    """
    checkpoint, build = _open(folder, IP_ADAPTER, ip_adapter_builders)
    with config_errors(checkpoint.folder):
        preprocess = section(checkpoint.config, "preprocess", PreprocessConfig)
    vision = checkpoint.load("vision", partial(build, "vision"), device, dtype)
    embedding = vision(pixels_of(reference, preprocess).to(device, dtype))
    del vision
    network = checkpoint.load("adapter", partial(build, "adapter"), device, dtype)
    adapter = cast(IPAdapterNetwork, network)
    return adapter, adapter(torch.cat([torch.zeros_like(embedding), embedding]))


def load_t2i_adapter(
    folder: str | Path, device: torch.device, dtype: torch.dtype
) -> T2IAdapterNetwork:
    """Loads a T2I-Adapter.

    folder: weights folder that `anyv2v convert` wrote, or a repository of the hub, see
    `convert.cache.located`. Raises InputError if the folder is damaged or holds something else.
    """
    checkpoint, build = _open(folder, T2I_ADAPTER, t2i_adapter_builders)
    network = checkpoint.load("adapter", partial(build, "adapter"), device, dtype)
    return cast(T2IAdapterNetwork, network)


def _open(
    folder: str | Path, expected: str, builders: Callable[[dict], Builders]
) -> tuple[Checkpoint, Callable[[str], nn.Module]]:
    found = cache.located(folder, lambda config: shapes_of(builders(config)), (ADAPTER,))
    checkpoint = Checkpoint.open(found)
    model = checkpoint.config.get("model", checkpoint.config.get("backbone"))
    if model != expected:
        raise InputError(f"{checkpoint.folder}: holds {model}; weights of {expected} are needed")
    with config_errors(checkpoint.folder):
        unbuilt = builders(checkpoint.config)

    def build(name: str) -> nn.Module:
        with config_errors(checkpoint.folder):
            return unbuilt[name]()

    return checkpoint, build
