"""The sizes and the tokenizer of the small flow model, and the parameters of its training."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from anyv2v.backbones.wan.sites import chosen_sites
from anyv2v.weights.demo.scenes import vocabulary
from anyv2v.weights.manifest import FORMAT, UNIGRAM_TOKENIZER


@dataclass(frozen=True)
class Preset:
    """Sizes of the model and its clips, and how the model is trained."""

    size: int
    """Height and width of a frame, in pixels."""
    frames: int
    """Frames per clip."""
    latent_channels: int
    """Channels of the autoencoder's latents."""
    vae_channels: tuple[int, ...]
    """Channels of the autoencoder at each level, highest resolution first."""
    dim: int
    """Length of the transformer's tokens."""
    heads: int
    """Number of heads of every attention of the transformer."""
    ff_dim: int
    """Length of the hidden vectors of the transformer's feed-forward networks."""
    layers: int
    """Number of the transformer's blocks."""
    text_dim: int
    """Length of the text encoder's vectors."""
    images: int
    """Batch size of the autoencoder's training, in pictures."""
    vae_steps: int
    """Number of steps of the autoencoder's training."""
    clips: int
    """Batch size of the transformer's training, in clips."""
    rate: float
    """Learning rate of AdamW."""
    matrix_rate: float
    """Learning rate of Muon, which trains the inner matrices."""


CPU = Preset(
    size=32,
    frames=9,
    latent_channels=8,
    vae_channels=(48, 48),
    dim=192,
    heads=6,
    ff_dim=576,
    layers=8,
    text_dim=64,
    images=32,
    vae_steps=3000,
    clips=16,
    rate=2e-3,
    matrix_rate=4e-3,
)
"""For two hours on one core, or more."""
PRESETS = {
    "cpu": CPU,
    # the same model for ten minutes on one large GPU; this one was never run
    "gpu": replace(CPU, images=256, clips=256),
}
"""Name of a preset -> its values."""

SHIFT = 5.0
"""The shift of the grid of levels that inversion and sampling visit: that of Wan 2.2 TI2V-5B, so
that a level of one index has the same sigma in both."""
TRAIN_SHIFT = 3.0
"""The shift of the levels that training draws. All levels are drawn, so that `SHIFT` may be
changed without further training; a quarter of them is above sigma 0.9, where motion is decided."""
TOKENS = 32
"""Number of vectors of an encoded caption; the longest caption has 28 words and a comma."""


INJECTION = {"map": 0.8, "value": 0.0, "context": 0.0, "hidden": 0.0}
"""Injection group -> fraction of the steps, see docs/flow-injection.md."""


def config(preset: Preset) -> dict:
    """Returns the config.json of a model with the sizes of `preset`, as a dict."""
    channels, dim = preset.latent_channels, preset.text_dim
    return {
        "format": FORMAT,
        "backbone": "wan",
        "components": ["transformer", "vae", "text"],
        "defaults": {
            "size": [preset.size] * 2,
            "frames": preset.frames,
            "fps": 8,
            "guidance": {"text": 1.0},
            "negative_prompt": "",
            "injection": INJECTION,
            # of 24 validation scenes none loses more than 0.04 dB by it
            "protect": True,
        },
        "transformer": {
            "in_channels": channels,
            "out_channels": channels,
            "dim": preset.dim,
            "heads": preset.heads,
            "ff_dim": preset.ff_dim,
            "layers": preset.layers,
            "text_dim": dim,
            "text_tokens": TOKENS,
            "time_dim": 64,
            "patch": [1, 2, 2],
            "positions": 64,
            "eps": 1e-6,
            "clean_first_frame": True,
        },
        # a latent frame is one frame: no level halves their number
        "vae": {
            "channels": 3,
            "patch": 2,
            "latent_channels": channels,
            "encoder_channels": list(preset.vae_channels),
            "decoder_channels": list(preset.vae_channels),
            "layers": 1,
            "temporal": [False] * (len(preset.vae_channels) - 1),
            "residual": False,
            "mean": [0.0] * channels,
            "std": [1.0] * channels,
        },
        "text": {
            "vocab_size": len(pieces()),
            "tokens": TOKENS,
            "width": dim,
            "heads": 4,
            "head_dim": dim // 4,
            "layers": 2,
            "mlp_width": 2 * dim,
            "buckets": 16,
            "max_distance": 32,
            "norm_eps": 1e-6,
        },
        "schedule": {"train_steps": 1000, "shift": SHIFT},
        "injection": chosen_sites(preset.layers),
    }


PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "\u2581"
"""What T5's tokenizers put in place of a space, and before a text."""


def pieces() -> list[str]:
    """Returns the tokens in the order of their ids: markers, the words of captions, the comma."""
    return [PAD, END, UNKNOWN, *(SPACE + word for word in vocabulary()), ","]


def tokenizer_files() -> dict[str, str]:
    """Returns the tokenizer as T5's have it, name of each file -> its text.

    Each word of a caption is one token; what is no such word becomes the unknown token.
    """
    tokens = pieces()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": END, "ids": [tokens.index(END)], "tokens": [END]}
    marker = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    split = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, marker]}
    told = {
        "version": "1.0",
        "added_tokens": [
            {"id": tokens.index(token), "content": token, **flags, "special": True}
            for token in (PAD, END, UNKNOWN)
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": split,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {END: end},
        },
        "decoder": marker,
        "model": {
            "type": "Unigram",
            "unk_id": tokens.index(UNKNOWN),
            # all words are as likely, and each is a token as a whole
            "vocab": [[token, 0.0 if token in (PAD, END, UNKNOWN) else -1.0] for token in tokens],
            "byte_fallback": False,
        },
    }
    (name,) = UNIGRAM_TOKENIZER
    return {name: json.dumps(told, ensure_ascii=False, indent=1) + "\n"}
