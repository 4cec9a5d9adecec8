"""A tiny model with random weights: it edits nothing, but runs through everything.

It stands in for the demo weights until trained ones ship.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.clip.tokenizer import byte_symbols
from anyv2v.weights.folder import Part, write_folder
from anyv2v.weights.manifest import FORMAT, Shapes

CONFIG = {
    "format": FORMAT,
    "backbone": "i2vgen",
    "defaults": {"size": [64, 64], "frames": 8, "fps": 8},
    "unet": {
        "channels": 4,
        "widths": [16, 32, 32],
        "attention": [True, True, False],
        "layers": 2,
        "head_dim": 8,
        "context_width": 32,
        "groups": 8,
    },
    "vae": {
        "channels": 3,
        "latent_channels": 4,
        "widths": [16, 32, 32],
        "layers": 1,
        "groups": 8,
        "scaling_factor": 0.18215,
    },
    "text": {
        "vocab_size": 514,
        "tokens": 77,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "mlp_width": 64,
        "activation": "gelu",
        "norm_eps": 1e-5,
    },
    "vision": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "mlp_width": 64,
        "activation": "gelu",
        "norm_eps": 1e-5,
        "projection_width": 32,
    },
    "tokenizer": {
        "start": "<|startoftext|>",
        "end": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "unknown": "<|endoftext|>",
    },
    "preprocess": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "schedule": {"train_steps": 1000, "steps_offset": 1},
    "injection": {
        "conv": ["up.1.res.1"],
        "spatial": [f"up.{i}.spatial.{j}.block.self" for i, j in ((1, 1), (1, 2), (2, 0), (2, 1))],
        "temporal": [
            f"up.{i}.temporal.{j}.block.self" for i, j in ((1, 1), (1, 2), (2, 0), (2, 1))
        ],
    },
}


def write_random(dst: Path, expected: Callable[[dict], dict[str, Shapes]], seed: int = 0) -> None:
    """Writes a folder of weights. expected: config -> component -> parameter -> shape."""
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    generator = torch.Generator().manual_seed(seed)
    parts = {
        component: Part(
            {name: (torch.float32, shape) for name, shape in shapes.items()},
            partial(_draw, shapes, generator),
        )
        for component, shapes in expected(CONFIG).items()
    }
    write_folder(dst, CONFIG, vocab, "#version: 0.2\n", parts)


def _draw(shapes: Shapes, generator: torch.Generator, name: str) -> Tensor:
    shape = shapes[name]
    if len(shape) == 1:  # biases, and the scales of norms
        return (
            torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
        )
    # half the variance that keeps activations level: a chain of random layers stays tame
    return torch.randn(shape, generator=generator) * math.sqrt(0.5 / math.prod(shape[1:]))
