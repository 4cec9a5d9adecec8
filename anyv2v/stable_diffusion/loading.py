"""From a weights folder to Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.config import blaming, section
from anyv2v.errors import InputError
from anyv2v.stable_diffusion.config import ScheduleConfig, UNet2DConfig
from anyv2v.stable_diffusion.schedule import NoiseSchedule
from anyv2v.stable_diffusion.unet import UNet2D
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import STABLE_DIFFUSION

KINDS = {4: "Stable Diffusion", 8: "InstructPix2Pix"}
"""Channels of the input -> what the model is called."""


@dataclass(frozen=True)
class StableDiffusion:
    unet: UNet2D
    vae: Autoencoder
    text: TextEncoder
    tokenizer: Tokenizer
    schedule: NoiseSchedule

    @property
    def device(self) -> torch.device:
        return self.unet.conv_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_out.weight.dtype

    def encode_text(self, *texts: str) -> Tensor:
        """(b, 77, c) in `dtype`: what the text tower makes of each."""
        ids = torch.cat([self.tokenizer(text) for text in texts])
        return self.text(ids.to(self.device), clip_skip=0)


def load(
    weights: str | Path, device: torch.device, dtype: torch.dtype, channels_in: int
) -> StableDiffusion:
    """The model in a folder that `anyv2v convert` wrote.

    channels_in: 4 for what paints from text, 8 for InstructPix2Pix. InputError names what is wrong
    with a folder, and what it holds instead.
    """
    checkpoint = Checkpoint.open(weights)
    check_kind(checkpoint, channels_in)
    config = checkpoint.config
    with blaming(checkpoint.folder):
        unbuilt = builders(config)
        schedule = NoiseSchedule(section(config, "schedule", ScheduleConfig).spacing)
        text = section(config, "text", TextConfig)
        special = section(config, "tokenizer", TokenizerConfig)

    def build(name: str) -> nn.Module:
        with blaming(checkpoint.folder):
            return unbuilt[name]()

    networks = {
        name: checkpoint.load(name, partial(build, name), device, dtype) for name in unbuilt
    }
    folder = checkpoint.folder / "tokenizer"
    tokenizer = Tokenizer.load(folder, special, text.tokens, text.vocab_size)
    return StableDiffusion(**networks, tokenizer=tokenizer, schedule=schedule)


def check_kind(checkpoint: Checkpoint, channels_in: int) -> None:
    """InputError unless the folder holds Stable Diffusion with so many input channels."""
    config, wanted = checkpoint.config, KINDS[channels_in]
    found = config.get("model", config.get("backbone"))
    if found == STABLE_DIFFUSION:
        with blaming(checkpoint.folder):
            found = KINDS.get(section(config, "unet", UNet2DConfig).channels_in, found)
    if found != wanted:
        raise InputError(f"{checkpoint.folder}: holds {found}; weights of {wanted} are needed")


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Component -> what makes its network, still without weights."""
    unet, vae = section(config, "unet", UNet2DConfig), section(config, "vae", AutoencoderConfig)
    text = section(config, "text", TextConfig)
    if unet.context_width != text.width:
        raise InputError(
            f"unet: context_width {unet.context_width} is not text: width {text.width}"
        )
    latents = vae.latent_channels
    if unet.channels_out != latents or unet.channels_in not in (latents, 2 * latents):
        raise InputError(
            f"unet: channels {unet.channels_in} to {unet.channels_out} do not fit "
            f"the {latents} of the vae"
        )
    return {
        "unet": lambda: UNet2D(unet),
        "vae": lambda: Autoencoder(vae),
        "text": lambda: TextEncoder(text),
    }
