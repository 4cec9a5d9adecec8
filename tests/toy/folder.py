"""A folder of the toy's weights, random from a seed."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from anyv2v.weights.folder import Part, write_folder
from tests.toy.backbone import Toy

CONFIG = {
    "format": 1,
    "backbone": "toy",
    "components": ["transformer", "words", "pixels"],
    "defaults": {"size": [36, 24], "frames": 9, "fps": 12},
}


def write(dst: Path, seed: int = 0, **defaults) -> None:
    """`defaults`: more of those in its config.json."""
    generator = torch.Generator().manual_seed(seed)
    config = {**CONFIG, "defaults": {**CONFIG["defaults"], **defaults}}
    parts = {}
    for name, build in Toy.networks(config).items():
        with torch.device("meta"):
            shapes = {key: tuple(x.shape) for key, x in build().state_dict().items()}
        weights = {key: _drawn(key, shape, generator) for key, shape in shapes.items()}
        layout = {key: (torch.float32, shape) for key, shape in shapes.items()}
        parts[name] = Part(layout, weights.__getitem__)
    write_folder(dst, config, {}, parts)


def _drawn(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    # a matrix gives about as much as it is given; the prediction is less than that, so that the
    # steps of an inversion can be solved by iteration, and the pixels, so that few are clipped
    scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2
    if key.startswith(("outward", "decoder")):
        scale *= 0.3
    return scale * torch.randn(shape, generator=generator)
