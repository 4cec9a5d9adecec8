"""A clip of a disc that crosses a gradient, of which every edit's truth can be rendered."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 50, 47),
    "yellow": (240, 200, 40),
    "green": (60, 170, 80),
    "blue": (40, 100, 220),
    "white": (235, 235, 235),
}


@dataclass(frozen=True)
class Scene:
    colour: str
    start: tuple[float, float]
    """Centre of the disc in the first frame, in parts of the picture (x, y)."""
    stride: tuple[float, float]
    """How far it goes per frame, likewise."""
    radius: float = 0.18

    @property
    def caption(self) -> str:
        return f"a {self.colour} disc moves across a grey background"


def draw_scene(seed: int) -> Scene:
    """A scene of its own for every seed."""
    rng = random.Random(seed)
    angle = rng.uniform(0, 2 * math.pi)
    stride = 0.05 * math.cos(angle), 0.05 * math.sin(angle)
    # the middle of the path is about the middle of the picture
    start = tuple(0.5 + rng.uniform(-0.1, 0.1) - 3.5 * s for s in stride)
    return Scene(rng.choice(sorted(COLOURS)), start, stride)


def render(scene: Scene, size: tuple[int, int], frames: int) -> np.ndarray:
    """(f, h, w, 3) uint8 RGB of `size` (width, height); edges smoothed over a pixel."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ground = np.repeat((70 + 60 * x / width + 40 * y / height)[..., None], 3, axis=-1)
    pictures = []
    for f in range(frames):
        cx, cy = ((s + f * d) for s, d in zip(scene.start, scene.stride, strict=True))
        distance = np.hypot(x + 0.5 - cx * width, y + 0.5 - cy * height)
        cover = np.clip(scene.radius * min(size) - distance + 0.5, 0, 1)[..., None]
        pictures.append(ground * (1 - cover) + np.array(COLOURS[scene.colour]) * cover)
    return np.stack(pictures).round().astype(np.uint8)
