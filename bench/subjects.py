"""The inputs of the benchmarks: editors with weights, and clips with an edit of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import anyv2v
from anyv2v.backbones.defaults import published_defaults
from anyv2v.editor import Editor
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.accounting import count
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth
from bench.counted import published_size


@dataclass(frozen=True)
class Job:
    """A video, and the first frame and the prompt of its edit."""

    video: anyv2v.Video
    frame: np.ndarray
    prompt: str

    @classmethod
    def rendered(cls, size: tuple[int, int], frames: int) -> Job:
        """Render shapes that the demo model was not trained on; size is (width, height)."""
        edit = draw_edit("colour", "held-out", 0)
        truth = Truth.of(edit, size, frames)
        return cls(anyv2v.Video(truth.source, 8), truth.frames[0], edit.truth.caption)

    @classmethod
    def enlarged(cls, size: tuple[int, int], frames: int) -> Job:
        """Enlarge a small clip by repeating pixels, which is faster than rendering a large one."""
        small = cls.rendered((32, 32), frames)
        width, height = size
        rows, columns = np.arange(height) * 32 // height, np.arange(width) * 32 // width
        pictures = small.video.frames[:, rows][:, :, columns]
        return cls(
            anyv2v.Video(pictures, small.video.fps), small.frame[rows][:, columns], small.prompt
        )


def demo(device: str) -> Editor:
    """Load the demo weights with the original's defaults in place of their own.

    50 steps, guidance 9 with the original's negative prompt, injection (0.2, 0.2, 0.5): the same
    work as with the published weights.
    """
    editor = anyv2v.load("demo", device=device, dtype=torch.float32)
    backbone = editor.backbone
    as_original = replace(
        backbone, defaults=published_defaults(backbone.defaults, backbone.published_settings)
    )
    return Editor(as_original, editor.fingerprint)


def published(device: str) -> Editor:
    """Make an editor of the published size with random weights in float16."""
    from bench.unet import draw

    editor = published_size()
    backbone = editor.backbone
    for network in (backbone.unet, backbone.text, backbone.vision, backbone.codec.vae):
        draw(network.to_empty(device=device))
        network.to(memory_format=torch.channels_last)  # as weights are loaded
    return editor


class Watched:
    """Counts the network evaluations of an editor and their operations.

    `editor` is an editor like the given one that is counted; it captures no CUDA graphs, because
    evaluations inside a graph cannot be seen. Operations are counted afterwards, in one evaluation
    of each kind.
    """

    def __init__(self, editor: Editor):
        self._backbone, self._codec = editor.backbone, editor.backbone.codec
        self.calls: Counter = Counter()
        self._examples: dict[Any, Callable[[], Any]] = {}
        self._costs: dict[Any, int] = {}
        vae = Stand(self._codec.vae, encode=self._encode, decode=self._decode)
        codec = replace(self._codec, vae=vae)
        backbone = Stand(self._backbone, predict=self._predict, codec=codec)
        self.editor = Editor(backbone, editor.fingerprint, graphs=False)

    @property
    def evaluations(self) -> int:
        """Evaluations of single branches since `clear`."""
        return sum(n * kind[1] for kind, n in self.calls.items() if kind[0] == "predict")

    @property
    def flops(self) -> int:
        """Operations of the network and the autoencoder since `clear`, without the CLIP towers."""
        for kind in self.calls.keys() - self._costs.keys():
            self._costs[kind] = count(self._examples[kind]).flops
        return sum(n * self._costs[kind] for kind, n in self.calls.items())

    def clear(self) -> None:
        """Start counting anew."""
        self.calls.clear()

    def _predict(self, latents: Tensor, t: int, conditions: Any, taps: Taps = NO_TAPS) -> Tensor:
        sites = None if taps.sites is None else frozenset(taps.sites)
        form = (getattr(taps, "compact", None),)
        # a replay's cost depends on the form of the recorded features
        kept = taps.features if isinstance(taps, anyv2v.Replay) else {}
        form += tuple(sorted((site, len(parts)) for site, parts in kept.items()))
        rows = len(conditions.samples)
        kind = "predict", rows, tuple(latents.shape), type(taps).__name__, sites, form
        return self._seen(kind, self._backbone.predict, latents, t, conditions, taps)

    def _encode(self, pixels: Tensor, generator: Any = None) -> Tensor:
        kind = "encode", tuple(pixels.shape)
        return self._seen(kind, self._codec.vae.encode, pixels, generator)

    def _decode(self, latents: Tensor) -> Tensor:
        return self._seen(("decode", tuple(latents.shape)), self._codec.vae.decode, latents)

    def _seen(self, kind: tuple, run: Callable, *args: Any) -> Tensor:
        self.calls[kind] += 1
        self._examples.setdefault(kind, lambda: run(*args))
        return run(*args)


class Stand:
    """Stand-in for an object, with some of its attributes replaced."""

    def __init__(self, of: Any, **others: Any):
        self._of = of
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)
