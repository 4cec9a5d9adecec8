"""Scenes of moving shapes, their captions, and edits of which the result is known exactly.

A scene is a value: an edit is another scene, with one attribute replaced, and rendering that one
gives the truth. Lengths are in parts of the picture's side, so a scene has no resolution.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

COLOURS = {
    "red": (0.88, 0.14, 0.14),
    "green": (0.12, 0.75, 0.22),
    "blue": (0.16, 0.32, 0.95),
    "yellow": (0.96, 0.85, 0.12),
    "white": (0.96, 0.96, 0.96),
    "pink": (0.94, 0.35, 0.80),
}
"""Of sprites, RGB 0..1."""

GROUNDS = {
    "grey": (0.45, 0.45, 0.45),
    "navy": (0.10, 0.13, 0.36),
    "olive": (0.36, 0.38, 0.13),
    "teal": (0.08, 0.40, 0.42),
    "brown": (0.40, 0.25, 0.13),
    "purple": (0.33, 0.15, 0.42),
}
"""Of backgrounds: darker than any sprite, so that every sprite can be seen."""

FORMS = ("circle", "square", "triangle", "diamond", "ring")
TEXTURES = ("plain", "striped", "dotted")
PATTERNS = ("plain", "striped", "checked", "wavy")
STYLES = ("natural", "night", "sepia", "poster", "outlined")

KINDS = ("colour", "texture", "shape", "background", "style", "add")
"""Of edits."""

SPLITS = {"train": 0, "validation": 10**9, "held-out": 2 * 10**9}
"""First seed of each; a seed makes one scene."""


@dataclass(frozen=True)
class Motion:
    """A path over u = 0 (first frame) to 1 (last): a line, a bend, hops and an orbit, added up."""

    words: str
    x: float
    y: float
    """The middle of the path."""
    angle: float = 0.0
    reach: float = 0.0
    """Direction (clockwise from the right) and length of the line."""
    bend: float = 0.0
    """How far the line is bent to its side."""
    hop: float = 0.0
    beats: float = 0.0
    """Height and number of the hops."""
    radius: float = 0.0
    sweep: float = 0.0
    """Of the orbit, the angle in radians, positive clockwise."""
    phase: float = 0.0
    """Of hops and orbit, in radians."""
    growth: float = 1.0
    """Size in the last frame over that in the first."""
    tilt: float = 0.0
    turn: float = 0.0
    """Orientation in the first frame, and by how much it changes, in radians."""


@dataclass(frozen=True)
class Sprite:
    form: str
    colour: str
    texture: str
    size: float
    """Half its width."""
    motion: Motion
    rides: bool = False
    """Whether it moves with the sprite before it."""


@dataclass(frozen=True)
class Ground:
    pattern: str
    colour: str
    angle: float
    period: float
    phase: float
    pan: float
    """How far the pattern wanders along `angle` over the clip."""


@dataclass(frozen=True)
class Scene:
    sprites: tuple[Sprite, ...]
    """From the back to the front."""
    ground: Ground
    style: str = "natural"

    @property
    def caption(self) -> str:
        text = ""
        for i, sprite in enumerate(self.sprites):
            text += "" if i == 0 else " with " if sprite.rides else " and "
            text += f"a {sprite.texture} {sprite.colour} {sprite.form}"
            text += "" if sprite.rides else f" {sprite.motion.words}"
        pan = " panning" if self.ground.pan else ""
        return f"{text} over{pan} {self.ground.pattern} {self.ground.colour}, {self.style}"


@dataclass(frozen=True)
class SceneEdit:
    source: Scene
    truth: Scene
    sprite: int
    """Index, in the truth, of the sprite that was edited, or that is watched."""


def draw_scene(split: str, index: int) -> Scene:
    """The scene of a seed: one to three sprites, most often one."""
    rng = random.Random(SPLITS[split] + index)
    sprites = [_sprite(rng)]
    company = rng.choices(("none", "rider", "one", "two"), (0.72, 0.14, 0.10, 0.04))[0]
    if company == "rider":
        sprites.append(_rider(rng, sprites[0]))
    elif company != "none":
        sprites += [_sprite(rng) for _ in range(1 if company == "one" else 2)]
    natural = rng.random() < 0.8
    style = "natural" if natural else rng.choice(STYLES[1:])
    return Scene(tuple(sprites), _ground(rng), style)


def draw_edit(kind: str, split: str, index: int) -> SceneEdit:
    """An edit of a kind, for the scene of a seed."""
    scene = draw_scene(split, index)
    # of its own, so that one scene can be had with every kind of edit
    rng = random.Random(f"{kind} {SPLITS[split] + index}")
    i, sprites, ground = 0, scene.sprites, scene.ground
    if kind == "add":
        scene = replace(scene, sprites=sprites[:1])
        sprites = (sprites[0], _rider(rng, sprites[0]))
        return SceneEdit(scene, replace(scene, sprites=sprites), 1)
    if kind == "style":
        scene = replace(scene, style="natural")
        return SceneEdit(scene, replace(scene, style=rng.choice(STYLES[1:])), i)
    if kind == "background":
        ground = replace(
            ground,
            colour=_other(rng, GROUNDS, ground.colour),
            pattern=_other(rng, PATTERNS, ground.pattern),
        )
        return SceneEdit(scene, replace(scene, ground=ground), i)
    if kind == "colour":
        changed = replace(sprites[i], colour=_other(rng, COLOURS, sprites[i].colour))
    elif kind == "texture":
        changed = replace(sprites[i], texture=_other(rng, TEXTURES, sprites[i].texture))
    elif kind == "shape":
        changed = replace(sprites[i], form=_other(rng, FORMS, sprites[i].form))
    else:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    return SceneEdit(scene, replace(scene, sprites=(changed, *sprites[1:])), i)


def vocabulary() -> list[str]:
    """All words of all captions."""
    words = set("a with and over panning natural".split())
    for group in (COLOURS, GROUNDS, FORMS, TEXTURES, PATTERNS, STYLES, *MOTION_WORDS.values()):
        words.update(word for entry in group for word in entry.split())
    return sorted(words)


DIRECTIONS = (
    "right",
    "down right",
    "down",
    "down left",
    "left",
    "up left",
    "up",
    "up right",
)
MOTION_WORDS = {
    "line": tuple(f"moving {d}" for d in DIRECTIONS),
    "curve": tuple(f"curving {d}" for d in DIRECTIONS),
    "orbit": ("circling clockwise", "circling backwards"),
    "hops": ("bouncing left", "bouncing right"),
    "size": ("growing", "shrinking"),
    "turn": ("turning clockwise", "turning backwards"),
}


def _sprite(rng: random.Random) -> Sprite:
    texture = "plain" if rng.random() < 0.7 else rng.choice(TEXTURES[1:])
    return Sprite(
        form=rng.choice(FORMS),
        colour=rng.choice(list(COLOURS)),
        texture=texture,
        size=rng.uniform(0.14, 0.21),
        motion=_motion(rng),
    )


def _rider(rng: random.Random, carrier: Sprite) -> Sprite:
    """A smaller sprite that touches another and goes where that goes."""
    side = rng.choice((0, 1, 2, 3)) * math.pi / 2
    distance = 0.8 * carrier.size + 0.06
    motion = replace(
        carrier.motion,
        x=carrier.motion.x + distance * math.cos(side),
        y=carrier.motion.y + distance * math.sin(side),
        growth=1.0,
    )
    others = [c for c in COLOURS if c != carrier.colour]
    return Sprite(rng.choice(FORMS[:4]), rng.choice(others), "plain", 0.10, motion, rides=True)


def _motion(rng: random.Random) -> Motion:
    x, y = (rng.uniform(0.4, 0.6) for _ in range(2))
    tilt = rng.uniform(-0.4, 0.4)
    kind = rng.choices(list(MOTION_WORDS), (0.40, 0.14, 0.18, 0.12, 0.08, 0.08))[0]
    i = rng.randrange(len(MOTION_WORDS[kind]))
    words = MOTION_WORDS[kind][i]
    sign = (1, -1)[i % 2]
    if kind in ("line", "curve"):
        bend = rng.choice((-1, 1)) * rng.uniform(0.12, 0.25) if kind == "curve" else 0.0
        angle, reach = i * math.pi / 4, rng.uniform(0.28, 0.55)
        return Motion(words, x, y, angle=angle, reach=reach, bend=bend, tilt=tilt)
    if kind == "orbit":
        radius, phase = rng.uniform(0.14, 0.24), rng.uniform(0, 2 * math.pi)
        sweep = sign * rng.uniform(2.5, 5.0)
        return Motion(words, x, y, radius=radius, sweep=sweep, phase=phase, tilt=tilt)
    if kind == "hops":
        reach, hop = rng.uniform(0.2, 0.35), rng.uniform(0.25, 0.45)
        beats, phase = rng.uniform(1.1, 1.6), rng.uniform(0, math.pi)
        angle = math.pi * (i == 0)
        return Motion(
            words, x, 0.76, angle=angle, reach=reach, hop=hop, beats=beats, phase=phase, tilt=tilt
        )
    if kind == "size":
        growth = rng.uniform(1.6, 2.1)
        return Motion(words, x, y, growth=growth if i == 0 else 1 / growth, tilt=tilt)
    return Motion(words, x, y, tilt=tilt, turn=sign * rng.uniform(1.2, 2.2))


def _ground(rng: random.Random) -> Ground:
    return Ground(
        pattern=rng.choice(PATTERNS),
        colour=rng.choice(list(GROUNDS)),
        angle=rng.randrange(4) * math.pi / 4,
        period=rng.uniform(0.22, 0.36),
        phase=rng.random(),
        pan=0.0 if rng.random() < 0.6 else rng.choice((-1, 1)) * rng.uniform(0.12, 0.26),
    )


def _other(rng: random.Random, choices, current: str) -> str:
    return rng.choice([c for c in choices if c != current])
