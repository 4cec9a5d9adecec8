"""Rendering of scenes to clips, in batches, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from anyv2v.weights.demo.scenes import (
    BACKGROUND_COLORS,
    COLORS,
    FORMS,
    PATTERNS,
    STYLES,
    TEXTURES,
    Light,
    Motion,
    Scene,
    Sprite,
)

EDGE = 1.2
"""Width of the soft edge of a sprite, in pixels."""

THINNEST = 0.2
"""Width of a sprite that is seen edge-on, as a fraction of its full width."""

ABSENT = Sprite(FORMS[0], next(iter(COLORS)), TEXTURES[0], 0.1, Motion("", 0.5, 0.5))
"""The sprite that is computed, but not shown, for a scene with fewer sprites than others."""
NUMBERS = [f.name for f in fields(Motion) if f.name != "words"]
"""The fields of `Motion` that are numbers."""


@dataclass(frozen=True)
class Rendered:
    """A batch of rendered clips, and which of their pixels show which sprite."""

    frames: Tensor
    """(b, f, h, w, 3) uint8, RGB."""
    covers: Tensor
    """(b, s, f, h, w) float32 in 0..1: how much of a pixel shows sprite s of the scene; zero if the
    scene has no sprite s. If no scene has any sprite, the tensor is empty."""


@torch.no_grad()
def render(
    scenes: Sequence[Scene], size: tuple[int, int], frames: int, device: str = "cpu"
) -> Rendered:
    """Renders each of the scenes as a clip of `frames` frames; b is the number of scenes.

    size: (width, height) in pixels. device: where the clips are computed and returned.
    """
    width, height = size
    u = torch.linspace(0, 1, frames, device=device)
    # pixel centers; the shorter side has length 1
    unit = min(size)
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5 + (unit - height) / 2) / unit,
        (torch.arange(width, device=device) + 0.5 + (unit - width) / 2) / unit,
        indexing="ij",
    )
    picture = _backgrounds(scenes, x, y, u, unit)  # (b, f, h, w, 3)
    covers = []
    for s in range(max((len(scene.sprites) for scene in scenes), default=0)):
        distance, paint = _sprites(scenes, s, x, y, u, unit)
        cover = (0.5 - distance * unit / EDGE).clamp(0, 1)
        outlined = _as_floats([scene.style == "outlined" for scene in scenes], device)
        line = (1.5 - (distance * unit).abs()).clamp(0, 1) * outlined[:, None, None, None]
        picture = torch.lerp(picture, paint, cover[..., None]) * (1 - line[..., None])
        covers = [c * (1 - cover) for c in covers] + [cover]
    picture = _noisy(scenes, _styled(scenes, _lit(scenes, picture, x, y, u)))
    shown = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return Rendered(shown, torch.stack(covers, 1) if covers else picture.new_zeros(0))


def tracks(scenes: Sequence[Scene], sprite: int, frames: int) -> Tensor:
    """Returns the centers (x, y) of one sprite of each scene in every frame, (b, f, 2) float32.

    They count from the left and the top of the picture's largest centered square, as fractions of
    its side. sprite: index of the sprite in each scene; the result means nothing for a scene that
    lacks it.
    """
    return _centers(_motions(scenes, sprite, "cpu"), torch.linspace(0, 1, frames))


def _motions(scenes: Sequence[Scene], s: int, device) -> dict[str, Tensor]:
    """The motions of sprites s: field -> (b, 1)."""
    motions = [_sprite(scene, s).motion for scene in scenes]
    table = torch.tensor([astuple(m)[1:] for m in motions], device=device).float()
    return {name: table[:, i, None] for i, name in enumerate(NUMBERS)}


def _sprite(scene: Scene, s: int) -> Sprite:
    """Sprite s of a scene; where there is none, any other, because it will not be shown."""
    return scene.sprites[s] if s < len(scene.sprites) else ABSENT


def _centers(m: dict[str, Tensor], u: Tensor) -> Tensor:
    along = m["reach"] * (u - 0.5)
    aside = m["bend"] * (4 * u * (1 - u) - 0.5)
    orbit = m["phase"] + m["sweep"] * u
    hop = m["hop"] * torch.sin(math.pi * m["beats"] * u + m["phase"]).abs()
    x = m["x"] + along * m["angle"].cos() - aside * m["angle"].sin() + m["radius"] * orbit.cos()
    y = m["y"] + along * m["angle"].sin() + aside * m["angle"].cos() + m["radius"] * orbit.sin()
    return torch.stack([x, y - hop], dim=-1)


def _sprites(scenes, s: int, x: Tensor, y: Tensor, u: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """Signed distances (b, f, h, w), negative inside, and colors (b, f, h, w, 3) of sprites s."""
    device = x.device
    present = [len(scene.sprites) > s for scene in scenes]
    sprites = [_sprite(scene, s) for scene in scenes]
    m = _motions(scenes, s, device)
    center = _centers(m, u)[:, :, None, None]  # (b, f, 1, 1, 2)
    tilt = (m["tilt"] + m["turn"] * u)[:, :, None, None]
    # the sprite has its nominal size in the middle of the clip
    size = torch.tensor([p.size for p in sprites], device=device)[:, None] * m["growth"] ** (
        u - 0.5
    )
    size = size[:, :, None, None]
    dx, dy = x - center[..., 0], y - center[..., 1]
    a, b = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
    width = (m["spin"] * u).cos().abs().clamp(min=THINNEST)[:, :, None, None]
    a = a / width
    form = _index([p.form for p in sprites], FORMS, device)
    distance = torch.zeros_like(a)
    for i, name in enumerate(FORMS):
        rows = (form == i).nonzero()[:, 0]
        if len(rows):
            distance[rows] = _distance(name, a[rows], b[rows], size[rows], width[rows])
    distance[~torch.tensor(present, device=device)] = 1.0
    texture = _index([p.texture for p in sprites], TEXTURES, device)[:, None, None, None]
    stripes = _soft(torch.sin(a * 2 * math.pi / (1.1 * size)), unit * size / 4)
    waves = torch.sin(a * 3.5 * math.pi / 2 / size) * torch.sin(b * 3.5 * math.pi / 2 / size)
    dots = _soft(0.25 - waves.abs() * waves.sign(), unit * size / 4)
    shade = torch.where(texture == 1, stripes, torch.where(texture == 2, dots, 1.0))
    color = torch.tensor([COLORS[p.color] for p in sprites], device=device)
    return distance, (0.4 + 0.6 * shade)[..., None] * color[:, None, None, None]


def _distance(form: str, a: Tensor, b: Tensor, size: Tensor, width: Tensor) -> Tensor:
    """Signed distance, to first order, to a form that is narrowed to `width` of its full width.

    a: position across the sprite, divided by `width`. b: position along it. The distance to the
    full form is divided by its slope, which the narrowing makes steeper.
    """
    distance = _DISTANCES[form]
    full = distance(a, b, size)
    if bool((width == 1).all()):
        return full
    step = 0.01 * size
    across = (distance(a + step, b, size) - distance(a - step, b, size)) / (2 * step * width)
    along = (distance(a, b + step, size) - distance(a, b - step, size)) / (2 * step)
    # where the form has a crease the slope is unknown; a full form's is 1
    slope = torch.hypot(across, along).clamp(min=1)
    return torch.where(width == 1, full, full / slope)


_DISTANCES = {
    "circle": lambda x, y, s: (x * x + y * y).sqrt() - s,
    "square": lambda x, y, s: torch.maximum(x.abs(), y.abs()) - 0.86 * s,
    "triangle": lambda x, y, s: torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.55 * s,
    "diamond": lambda x, y, s: 0.8 * (x.abs() + 0.75 * y.abs()) - 0.9 * s,
    "ring": lambda x, y, s: ((x * x + y * y).sqrt() - 0.75 * s).abs() - 0.3 * s,
}
"""Form -> function of (x, y, size) that gives the signed distance."""


def _backgrounds(scenes, x: Tensor, y: Tensor, u: Tensor, unit: int) -> Tensor:
    """The backgrounds (b, f, h, w, 3), RGB in 0..1."""
    backgrounds, device = [scene.background for scene in scenes], x.device
    table = torch.tensor([(b.angle, b.period, b.phase, b.pan) for b in backgrounds], device=device)
    angle, period, phase, pan = table.float()[:, :, None, None, None].unbind(1)
    wave = 2 * math.pi / period
    along = (x * angle.cos() + y * angle.sin() + pan * u[:, None, None]) * wave + phase * 6.2832
    across = (y * angle.cos() - x * angle.sin()) * wave
    pattern = _index([b.pattern for b in backgrounds], PATTERNS, device)[:, None, None, None]
    sharp = unit * period / 6
    stripes = _soft(along.sin(), sharp)
    checks = _soft(along.sin() * across.sin(), sharp)
    waves = 0.5 + 0.5 * torch.sin(along * 0.3)
    shade = torch.where(pattern == 1, stripes, torch.where(pattern == 2, checks, waves))
    shade = torch.where(pattern == 0, torch.zeros_like(shade), shade)[..., None]
    dark = torch.tensor([BACKGROUND_COLORS[b.color] for b in backgrounds], device=device)[
        :, None, None, None
    ]
    return torch.lerp(dark.expand(*shade.shape[:-1], 3), 0.6 * dark + 0.3, shade)


def _lit(scenes, picture: Tensor, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """The colors under each scene's light; those under the default light are the same bits."""
    if all(scene.light == Light() for scene in scenes):
        return picture
    table = torch.tensor([astuple(scene.light) for scene in scenes], device=x.device)
    first, last, falloff, angle = table[:, :, None, None, None].unbind(1)
    way = (x - 0.5) * angle.cos() + (y - 0.5) * angle.sin()
    # 0 and 1 at the two corners, or sides, of the square that the direction goes to
    way = 0.5 + way / (angle.cos().abs() + angle.sin().abs())
    light = torch.lerp(first, last, u[:, None, None]) * (1 - falloff * way)
    return picture * light.clamp(min=0)[..., None]


def _noisy(scenes, picture: Tensor) -> Tensor:
    """The recording with each scene's noise, which does not depend on the device."""
    for i, scene in enumerate(scenes):
        if scene.noise:
            generator = torch.Generator().manual_seed(scene.noise_seed)
            noise = torch.randn(picture.shape[1:], generator=generator)
            picture[i] = picture[i].clamp(0, 1) + scene.noise * noise.to(picture.device)
    return picture


def _styled(scenes, picture: Tensor) -> Tensor:
    style = _index([s.style for s in scenes], STYLES, picture.device)[:, None, None, None, None]
    grey = picture @ picture.new_tensor((0.3, 0.59, 0.11))
    for name, styled in (
        ("night", picture * picture.new_tensor((0.35, 0.5, 0.85))),
        ("sepia", grey[..., None] * picture.new_tensor((1.0, 0.82, 0.58))),
        ("poster", (picture * 2).round() / 2),
    ):
        picture = torch.where(style == STYLES.index(name), styled, picture)
    return picture


def _soft(wave: Tensor, sharpness) -> Tensor:
    """Maps -1..1 to 0..1, more steeply the more pixels a period has."""
    return (0.5 + 0.5 * wave * sharpness).clamp(0, 1)


def _index(names: Sequence[str], table: Sequence[str], device) -> Tensor:
    return torch.tensor([table.index(name) for name in names], device=device)


def _as_floats(flags: Sequence[bool], device) -> Tensor:
    return torch.tensor(flags, device=device).float()
