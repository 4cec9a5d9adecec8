"""From folders of adapters, that `anyv2v convert` wrote, to what they tell Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.config import blaming, section
from anyv2v.errors import InputError
from anyv2v.stable_diffusion.ip_adapter import IPAdapterConfig, IPAdapterNetwork, pixels_of
from anyv2v.stable_diffusion.t2i_adapter import T2IAdapterConfig, T2IAdapterNetwork
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import IP_ADAPTER, T2I_ADAPTER

Builders = dict[str, Callable[[], nn.Module]]


def ip_adapter_builders(config: dict) -> Builders:
    """Component -> what makes its network, still without weights."""
    adapter, vision = (
        section(config, "adapter", IPAdapterConfig),
        section(config, "vision", VisionConfig),
    )
    if adapter.image_width != vision.projection_width:
        raise InputError(
            f"adapter: image_width {adapter.image_width} is not vision: projection_width "
            f"{vision.projection_width}"
        )
    size = section(config, "preprocess", PreprocessConfig).size
    if size != vision.image_size:
        raise InputError(f"preprocess: size {size} is not vision: image_size {vision.image_size}")
    return {
        "adapter": lambda: IPAdapterNetwork(adapter),
        "vision": lambda: VisionEncoder(vision),
    }


def t2i_adapter_builders(config: dict) -> Builders:
    adapter = section(config, "adapter", T2IAdapterConfig)
    return {"adapter": lambda: T2IAdapterNetwork(adapter)}


def load_ip_adapter(
    folder: str | Path, reference: np.ndarray, device: torch.device, dtype: torch.dtype
) -> tuple[IPAdapterNetwork, Tensor]:
    """The adapter, and the tokens of no picture and of the reference, uint8 (h, w, 3): (2, m, c').

    The vision tower is gone when this returns. InputError names what is wrong with the folder.
    """
    checkpoint, build = _open(folder, IP_ADAPTER, ip_adapter_builders)
    with blaming(checkpoint.folder):
        preprocess = section(checkpoint.config, "preprocess", PreprocessConfig)
    vision = checkpoint.load("vision", partial(build, "vision"), device, dtype)
    embedding = vision(pixels_of(reference, preprocess).to(device, dtype))
    del vision
    adapter = checkpoint.load("adapter", partial(build, "adapter"), device, dtype)
    return adapter, adapter(torch.cat([torch.zeros_like(embedding), embedding]))


def load_t2i_adapter(
    folder: str | Path, device: torch.device, dtype: torch.dtype
) -> T2IAdapterNetwork:
    """InputError names what is wrong with the folder."""
    checkpoint, build = _open(folder, T2I_ADAPTER, t2i_adapter_builders)
    return checkpoint.load("adapter", partial(build, "adapter"), device, dtype)


def _open(
    folder: str | Path, wanted: str, builders: Callable[[dict], Builders]
) -> tuple[Checkpoint, Callable[[str], nn.Module]]:
    checkpoint = Checkpoint.open(folder)
    found = checkpoint.config.get("model", checkpoint.config.get("backbone"))
    if found != wanted:
        raise InputError(f"{checkpoint.folder}: holds {found}; weights of {wanted} are needed")
    with blaming(checkpoint.folder):
        unbuilt = builders(checkpoint.config)

    def build(name: str) -> nn.Module:
        with blaming(checkpoint.folder):
            return unbuilt[name]()

    return checkpoint, build
