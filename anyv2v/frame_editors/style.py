"""Editors that need no model: one paints in a few flat colors, one draws the edges as lines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from anyv2v import checks
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.oklab import from_rgb, to_rgb
from anyv2v.frame_editors.regions import blur

SAMPLE = 10000
"""Most pixels, drawn at random, from which `Posterize` computes the colors."""


@dataclass(frozen=True)
class Posterize:
    """Paints the frame in its few most used colors, flat."""

    colours: int = 8
    """The number of colors, 2 to 256."""
    smooth: float = 0.005
    """Radius of the blur that is applied first, as a fraction, 0 to 1, of the shorter side."""

    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __post_init__(self) -> None:
        checks.whole("colours", self.colours, 2, 256)
        checks.fraction("smooth", self.smooth)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns a posterized frame for each seed; see `FrameEditor`."""
        lab = from_rgb(request.frame)
        radius = round(self.smooth * min(lab.shape[:2]))
        blurred = np.stack([blur(lab[..., i], radius) for i in range(3)], -1)
        return [to_rgb(self._flat(blurred, np.random.default_rng(seed))) for seed in seeds]

    def _flat(self, lab: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels = lab.reshape(-1, 3)
        centers = k_means(pixels[rng.permutation(len(pixels))[:SAMPLE]], self.colours, rng)
        return centers[vq(pixels, centers)[0]].reshape(lab.shape)


@dataclass(frozen=True)
class Edges:
    """Draws dark lines where the frame has edges, over it or on white paper."""

    strength: float = 1.0
    """How dark the lines are, 0 to 1."""
    detail: float = 0.5
    """How faint an edge may be and still get a line, 0 to 1: a larger value draws more lines."""
    paper: bool = False
    """Whether the lines are drawn on white instead of over the frame."""

    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        checks.fraction("strength", self.strength)
        checks.fraction("detail", self.detail)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns the same drawing for each seed; see `FrameEditor`."""
        lab = from_rgb(request.frame)
        side = min(lab.shape[:2])
        # the difference across two pixels of a picture of 256 pixels
        slope = np.zeros(lab.shape[:2])
        for i in range(3):
            blurred = blur(blur(lab[..., i], side // 400), side // 400)
            down, right = np.gradient(np.pad(blurred, 1, mode="edge"))
            slope += (down**2 + right**2)[1:-1, 1:-1]
        slope = np.sqrt(slope) * max(1.0, side / 256) * 2
        least = 0.12 * (1 - self.detail) + 0.02
        line = ((slope - least) / least).clip(0, 1) * self.strength
        if self.paper:
            lab = np.zeros_like(lab) + (1.0, 0.0, 0.0)
        drawn = to_rgb(lab * (1 - line[..., None]))
        return [drawn.copy() for _ in seeds]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Computes up to `count` cluster centers (k, 3) of points (n, 3).

    20 of Lloyd's iterations start from k-means++ (Arthur and Vassilvitskii 2007) with `rng`. There
    are fewer centers than `count` if there are fewer distinct points.
    """
    # as many centers as distinct points, for no point could begin a further one
    count = min(count, len(np.unique(points, axis=0)))
    with warnings.catch_warnings():
        # a center that loses all its points stays where it is
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        return kmeans2(points, count, iter=20, minit="++", rng=rng)[0]
