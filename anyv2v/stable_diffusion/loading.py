"""Loading Stable Diffusion or InstructPix2Pix from a weights folder that `anyv2v convert` wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.config import config_errors, section
from anyv2v.convert import cache
from anyv2v.convert.repositories import EDITOR
from anyv2v.errors import InputError
from anyv2v.runtime.meta import shapes_of
from anyv2v.stable_diffusion.config import ScheduleConfig, UNet2DConfig
from anyv2v.stable_diffusion.schedule import DiscreteSchedule
from anyv2v.stable_diffusion.unet import UNet2D
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import STABLE_DIFFUSION

KINDS = {4: "Stable Diffusion", 8: "InstructPix2Pix"}
"""Number of channels of the UNet's input -> name of the model."""


@dataclass(frozen=True)
class StableDiffusion:
    """The loaded networks of Stable Diffusion 1.x, or of InstructPix2Pix, ready to run."""

    unet: UNet2D
    """The network that predicts the noise in latents."""
    vae: Autoencoder
    """The autoencoder between images and latents."""
    text: TextEncoder
    """CLIP's text encoder."""
    tokenizer: Tokenizer
    """The tokenizer of the text encoder."""
    schedule: DiscreteSchedule
    """The noise schedule."""

    @property
    def device(self) -> torch.device:
        """The device of the UNet's weights."""
        return self.unet.conv_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's weights."""
        return self.unet.conv_out.weight.dtype

    def encode_text(self, *texts: str) -> Tensor:
        """Encodes b texts as the text encoder's last hidden states: (b, 77, c') in `dtype`."""
        ids = torch.cat([self.tokenizer(text) for text in texts])
        return self.text(ids.to(self.device), clip_skip=0)


def load(
    weights: str | Path, device: torch.device, dtype: torch.dtype, in_channels: int
) -> StableDiffusion:
    """Loads Stable Diffusion or InstructPix2Pix from a weights folder.

    weights: a folder that `anyv2v convert` wrote, or a repository of the hub, see
    `convert.cache.located`. in_channels: which model is expected, 4 for
    Stable Diffusion or 8 for InstructPix2Pix. Raises InputError if the folder is damaged or holds
    another model.
    """
    folder = cache.located(weights, lambda config: shapes_of(builders(config)), (EDITOR,))
    checkpoint = Checkpoint.open(folder)
    check_kind(checkpoint, in_channels)
    config = checkpoint.config
    with config_errors(checkpoint.folder):
        unbuilt = builders(config)
        schedule = DiscreteSchedule(section(config, "schedule", ScheduleConfig).spacing)
        text = section(config, "text", TextConfig)
        special = section(config, "tokenizer", TokenizerConfig)

    def build(name: str) -> nn.Module:
        with config_errors(checkpoint.folder):
            return unbuilt[name]()

    networks = {
        name: checkpoint.load(name, partial(build, name), device, dtype) for name in unbuilt
    }
    folder = checkpoint.folder / "tokenizer"
    tokenizer = Tokenizer.load(folder, special, text.tokens, text.vocab_size)
    return StableDiffusion(
        unet=cast(UNet2D, networks["unet"]),
        vae=cast(Autoencoder, networks["vae"]),
        text=cast(TextEncoder, networks["text"]),
        tokenizer=tokenizer,
        schedule=schedule,
    )


def check_kind(checkpoint: Checkpoint, in_channels: int) -> None:
    """Raises InputError if a weights folder does not hold the expected model.

    in_channels: channels of the UNet's input, 4 for Stable Diffusion or 8 for InstructPix2Pix.
    """
    config, expected = checkpoint.config, KINDS[in_channels]
    model = config.get("model", config.get("backbone"))
    if model == STABLE_DIFFUSION:
        with config_errors(checkpoint.folder):
            model = KINDS.get(section(config, "unet", UNet2DConfig).in_channels, model)
    if model != expected:
        raise InputError(f"{checkpoint.folder}: holds {model}; weights of {expected} are needed")


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Returns the functions that build the networks "unet", "vae" and "text".

    config: the contents of the weights folder's config.json. The networks are built without loading
    weights. Raises InputError if a section of the config is missing or wrong, or the sections do
    not match each other.
    """
    unet, vae = section(config, "unet", UNet2DConfig), section(config, "vae", AutoencoderConfig)
    text = section(config, "text", TextConfig)
    if unet.context_dim != text.hidden_size:
        raise InputError(
            f"unet: context_width {unet.context_dim} is not text: width {text.hidden_size}"
        )
    latents = vae.latent_channels
    if unet.out_channels != latents or unet.in_channels not in (latents, 2 * latents):
        raise InputError(
            f"unet: channels {unet.in_channels} to {unet.out_channels} do not fit "
            f"the {latents} of the vae"
        )
    return {
        "unet": lambda: UNet2D(unet),
        "vae": lambda: Autoencoder(vae),
        "text": lambda: TextEncoder(text),
    }
