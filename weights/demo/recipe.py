"""What the demo model is: its sizes, its captions' tokenizer, and what it is trained with."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.clip.tokenizer import MARKERS, byte_symbols
from anyv2v.weights.demo.scenes import vocabulary
from anyv2v.weights.demo.settings import BEST
from anyv2v.weights.manifest import FORMAT


@dataclass(frozen=True)
class Preset:
    """Sizes of the clips and of the networks, and how they are trained."""

    size: int
    """Of a frame's side, in pixels."""
    frames: int
    latent_channels: int
    vae_widths: tuple[int, ...]
    widths: tuple[int, ...]
    layers: int
    context_width: int
    images: int
    """Of a batch, for the autoencoder."""
    clips: int
    """Of a batch, for the UNet."""
    rate: float
    matrix_rate: float
    """Highest learning rates, of AdamW and of Muon."""
    vae_share: float
    """Part of the time that goes to the autoencoder."""


PRESETS = {
    # an hour of one core
    "cpu": Preset(
        size=32,
        frames=8,
        latent_channels=8,
        vae_widths=(16, 48, 64),
        widths=(64, 96, 96),
        layers=1,
        context_width=64,
        images=32,
        clips=8,
        rate=2e-3,
        matrix_rate=4e-3,
        vae_share=0.2,
    ),
    # half an hour of one large card; nothing of it is measured
    "gpu": Preset(
        size=64,
        frames=16,
        latent_channels=4,
        vae_widths=(32, 64, 96),
        widths=(64, 96, 160),
        layers=1,
        context_width=64,
        images=256,
        clips=128,
        rate=2e-3,
        matrix_rate=4e-3,
        vae_share=0.25,
    ),
}

ATTENTION = (True, True, False)
"""Levels of the UNet that attend."""

TOKENS = 32
"""The longest caption has 25 words."""


def config(preset: Preset) -> dict:
    """The config.json of the model."""
    width = preset.context_width
    tower = {"width": width, "heads": 4, "mlp_width": 2 * width, "activation": "gelu"}
    return {
        "format": FORMAT,
        "backbone": "i2vgen",
        "defaults": {"size": [preset.size] * 2, "frames": preset.frames, "fps": 8}
        | BEST.as_defaults(),
        "unet": {
            "channels": preset.latent_channels,
            "widths": list(preset.widths),
            "attention": list(ATTENTION),
            "layers": preset.layers,
            "head_dim": 16,
            "context_width": width,
            "groups": 8,
        },
        "vae": {
            "channels": 3,
            "latent_channels": preset.latent_channels,
            "widths": list(preset.vae_widths),
            "layers": 1,
            "groups": 8,
            "scaling_factor": 1.0,
        },
        "text": {
            "vocab_size": len(tokenizer_files()[0]),
            "tokens": TOKENS,
            "layers": 2,
            "norm_eps": 1e-5,
            **tower,
        },
        "vision": {
            "image_size": 32,
            "patch_size": 8,
            "layers": 2,
            "norm_eps": 1e-5,
            "projection_width": width,
            **tower,
        },
        "tokenizer": {"start": MARKERS[0], "end": MARKERS[1], "pad": MARKERS[1]}
        | {"unknown": MARKERS[1]},
        "preprocess": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "schedule": {"train_steps": 1000, "steps_offset": 1},
        "injection": paper_sites(ATTENTION, preset.layers) | {"conv": CONV_SITES},
    }


CONV_SITES = ["up.2.res.0"]
"""Of full resolution, where the original has one of a quarter: README.md says what was measured."""


def tokenizer_files() -> tuple[dict[str, int], str]:
    """vocab.json as a dict and the text of merges.txt: every word of a caption is one token."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges: dict[tuple[str, str], None] = {}
    for word in [*vocabulary(), ","]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # from the front, but what two words share is merged once
            pair = pieces[0], pieces[1]
            merges[pair] = None
            pieces[:2] = ["".join(pair)]
    tokens += ["".join(pair) for pair in merges]
    tokens += MARKERS
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return vocab, "\n".join(lines) + "\n"
