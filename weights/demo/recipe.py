"""The demo model's sizes and tokenizer, and the parameters of its training."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.clip.tokenizer import MARKERS, byte_symbols
from anyv2v.weights.demo.scenes import vocabulary
from anyv2v.weights.demo.settings import BEST
from anyv2v.weights.manifest import FORMAT


@dataclass(frozen=True)
class Preset:
    """Sizes of the demo model and its clips, and how the model is trained."""

    size: int
    """Height and width of a frame, in pixels."""
    frames: int
    """Frames per clip."""
    latent_channels: int
    """Channels of the autoencoder's latents."""
    vae_level_channels: tuple[int, ...]
    """Channels of the autoencoder at each level, highest resolution first."""
    level_channels: tuple[int, ...]
    """Channels of the UNet at each level, highest resolution first."""
    layers: int
    """Layers per level of the UNet on the way down; a level on the way up has one more."""
    context_dim: int
    """Width of the UNet's context vectors, and of both CLIP encoders."""
    images: int
    """Batch size of the autoencoder's training, in pictures."""
    clips: int
    """Batch size of the UNet's training, in clips."""
    rate: float
    """Peak learning rate of AdamW."""
    matrix_rate: float
    """Peak learning rate of Muon, which trains the inner matrices."""
    vae_share: float
    """Fraction of the training time that is spent on the autoencoder; the UNet gets the rest."""


PRESETS = {
    # for one hour on one core
    "cpu": Preset(
        size=32,
        frames=8,
        latent_channels=8,
        vae_level_channels=(16, 48, 64),
        level_channels=(64, 96, 96),
        layers=1,
        context_dim=64,
        images=32,
        clips=8,
        rate=2e-3,
        matrix_rate=4e-3,
        vae_share=0.2,
    ),
    # for half an hour on one large GPU; this one was never measured
    "gpu": Preset(
        size=64,
        frames=16,
        latent_channels=4,
        vae_level_channels=(32, 64, 96),
        level_channels=(64, 96, 160),
        layers=1,
        context_dim=64,
        images=256,
        clips=128,
        rate=2e-3,
        matrix_rate=4e-3,
        vae_share=0.25,
    ),
}
"""Name of a preset -> its values. The demo model was trained with "cpu"."""

ATTENTION = (True, True, False)
"""Whether each level of the UNet has transformers, highest resolution first."""

TOKENS = 32
"""Length of the text encoder's sequences, in tokens; the longest caption has 25 words."""


def config(preset: Preset) -> dict:
    """Returns the config.json of a demo model with the sizes of `preset`, as a dict."""
    dim = preset.context_dim
    tower = {"width": dim, "heads": 4, "mlp_width": 2 * dim, "activation": "gelu"}
    return {
        "format": FORMAT,
        "backbone": "i2vgen",
        "defaults": {"size": [preset.size] * 2, "frames": preset.frames, "fps": 8}
        | BEST.as_defaults(),
        "unet": {
            "channels": preset.latent_channels,
            "widths": list(preset.level_channels),
            "attention": list(ATTENTION),
            "layers": preset.layers,
            "head_dim": 16,
            "context_width": dim,
            "groups": 8,
        },
        "vae": {
            "channels": 3,
            "latent_channels": preset.latent_channels,
            "widths": list(preset.vae_level_channels),
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
            "projection_width": dim,
            **tower,
        },
        "tokenizer": {"start": MARKERS[0], "end": MARKERS[1], "pad": MARKERS[1]}
        | {"unknown": MARKERS[1]},
        "preprocess": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "schedule": {"train_steps": 1000, "steps_offset": 1},
        "injection": paper_sites(ATTENTION, preset.layers) | {"conv": CONV_SITES},
    }


CONV_SITES = ["up.2.res.0"]
"""Sites (names of layers) of the injection group "conv". This one is at the full resolution of the
latents; the original injects at a quarter of it. README.md has measurements."""


def tokenizer_files() -> tuple[dict[str, int], str]:
    """Returns the demo model's vocabulary (token -> id) and the text of its merges.txt.

    Each word of a caption is one token.
    """
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges: dict[tuple[str, str], None] = {}
    for word in [*vocabulary(), ","]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # from the front, so words that begin alike share merges
            pair = pieces[0], pieces[1]
            merges[pair] = None
            pieces[:2] = ["".join(pair)]
    tokens += ["".join(pair) for pair in merges]
    tokens += MARKERS
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return vocab, "\n".join(lines) + "\n"
