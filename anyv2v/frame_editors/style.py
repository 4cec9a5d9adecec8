"""Styles that need no model: few colours, drawn lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anyv2v import checks
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.oklab import from_rgb, to_rgb
from anyv2v.frame_editors.regions import blur

MOST = 10000
"""Pixels that the colours are found on."""


@dataclass(frozen=True)
class Posterise:
    """Paints the frame in its few most used colours, flat."""

    colours: int = 8
    """How many."""
    smooth: float = 0.005
    """Of the shorter side: how far details are evened out first."""

    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __post_init__(self) -> None:
        checks.whole("colours", self.colours, 2, 256)
        checks.fraction("smooth", self.smooth)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        lab = from_rgb(request.frame)
        radius = round(self.smooth * min(lab.shape[:2]))
        even = np.stack([blur(lab[..., i], radius) for i in range(3)], -1)
        return [to_rgb(self._flat(even, np.random.default_rng(seed))) for seed in seeds]

    def _flat(self, lab: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels = lab.reshape(-1, 3)
        centres = k_means(pixels[rng.permutation(len(pixels))[:MOST]], self.colours, rng)
        return centres[nearest(pixels, centres)].reshape(lab.shape)


@dataclass(frozen=True)
class Edges:
    """Draws dark lines where the frame has edges, over it or on white paper."""

    strength: float = 1.0
    """0 to 1: how dark."""
    detail: float = 0.5
    """0 to 1: how faint an edge still gets a line."""
    paper: bool = False
    """Only the lines, on white."""

    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        checks.fraction("strength", self.strength)
        checks.fraction("detail", self.detail)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        lab = from_rgb(request.frame)
        side = min(lab.shape[:2])
        # differences per two pixels of a picture of 256
        slope = np.zeros(lab.shape[:2])
        for i in range(3):
            even = blur(blur(lab[..., i], side // 400), side // 400)
            down, right = np.gradient(np.pad(even, 1, mode="edge"))
            slope += (down**2 + right**2)[1:-1, 1:-1]
        slope = np.sqrt(slope) * max(1.0, side / 256) * 2
        least = 0.12 * (1 - self.detail) + 0.02
        line = ((slope - least) / least).clip(0, 1) * self.strength
        if self.paper:
            lab = np.zeros_like(lab) + (1.0, 0.0, 0.0)
        drawn = to_rgb(lab * (1 - line[..., None]))
        return [drawn.copy() for _ in seeds]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` centres (k, 3) of points (n, 3), begun far apart (k-means++, 2007)."""
    centres = points[rng.integers(len(points))][None]
    for _ in range(count - 1):
        far = ((points[:, None] - centres) ** 2).sum(-1).min(1)
        if not far.any():
            break
        centres = np.concatenate([centres, points[[rng.choice(len(points), p=far / far.sum())]]])
    for _ in range(20):
        index = nearest(points, centres)
        used = np.unique(index)
        centres = np.stack([points[index == i].mean(0) for i in used])
    return centres


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) the index of the centre nearest to each point."""
    distance = (centres**2).sum(-1) - 2 * points @ centres.T
    return distance.argmin(1)
