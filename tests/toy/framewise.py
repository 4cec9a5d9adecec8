"""The toy with a latent frame for each frame, which windows need; and one that predicts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import anyv2v
from anyv2v.backbones.registry import BACKBONES
from anyv2v.editor import Editor
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.media.image import pixels_of
from anyv2v.pipeline.shapes import FeatureShapes
from tests.toy import folder
from tests.toy.backbone import Conditions, Toy
from tests.toy.codec import CHANNELS, PATCH, ToyCodec


class Framewise(ToyCodec):
    """The toy's codec, frame by frame."""

    frames_per_latent = 1

    def check_frames(self, frames: int) -> int:
        return frames

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return CHANNELS, frames, height // PATCH, width // PATCH

    def frames_of(self, latent_frames: int) -> int:
        return latent_frames

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        for frame in frames.split(1):
            yield from super().encode(frame, at_once, generator)

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        for frame in latents.split(1, 2):
            yield from super().decode(frame, at_once)


class Still(Framewise):
    """Means over squares of pixels as latents, and back: a codec that costs next to nothing."""

    size_multiple = PATCH

    def encode(
        self, frames: Tensor, at_once: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        for frame in frames.split(1):
            means = nn.functional.avg_pool2d(pixels_of(frame), PATCH)
            yield torch.cat([means, means[:, :1]], 1)[:, :, None]

    def decode(self, latents: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        for frame in latents[0, :3].unbind(1):
            yield frame.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[None]


@dataclass(frozen=True)
class Idle(Toy):
    """Predicts a tenth of the latents: for clips of full size."""

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        return torch.cat([latents[i : i + 1] for i in conditions.samples]) / 10


def load(path: Path, idle: bool = False, **defaults) -> Editor:
    """Write a folder of the toy's weights, and return an editor of single frames."""
    folder.write(path, **defaults)
    with patch.dict(BACKBONES, {"toy": Toy}):
        made = anyv2v.load(path, device="cpu", graphs=False)
    toy = made.backbone
    codec = (Still if idle else Framewise)(toy.codec.net)
    if idle:
        toy = Idle(toy.transformer, toy.words, codec, toy.defaults)
    # the same editor, which reads the words from the folder when they are needed
    made.backbone = replace(toy, codec=codec)
    made._shapes = FeatureShapes(made.backbone)
    return made
