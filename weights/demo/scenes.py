"""Scenes of moving shapes, their captions, and edits whose true result is known exactly.

A scene is a value. An edit replaces one attribute of a scene, and rendering the edited scene gives
the true result. Lengths are fractions of the picture's shorter side, and positions count from the
left and the top of the largest centered square, so a scene has no resolution. Sprites are the
moving shapes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

COLORS = {
    "red": (0.88, 0.14, 0.14),
    "green": (0.12, 0.75, 0.22),
    "blue": (0.16, 0.32, 0.95),
    "yellow": (0.96, 0.85, 0.12),
    "white": (0.96, 0.96, 0.96),
    "pink": (0.94, 0.35, 0.80),
}
"""Colors of sprites, RGB in 0..1."""

BACKGROUND_COLORS = {
    "grey": (0.45, 0.45, 0.45),
    "navy": (0.10, 0.13, 0.36),
    "olive": (0.36, 0.38, 0.13),
    "teal": (0.08, 0.40, 0.42),
    "brown": (0.40, 0.25, 0.13),
    "purple": (0.33, 0.15, 0.42),
}
"""Colors of backgrounds, RGB in 0..1: darker than any sprite, so that every sprite can be seen."""

FORMS = ("circle", "square", "triangle", "diamond", "ring")
"""The shapes of sprites."""
TEXTURES = ("plain", "striped", "dotted")
"""The surfaces of sprites."""
PATTERNS = ("plain", "striped", "checked", "wavy")
"""The patterns of backgrounds."""
STYLES = ("natural", "night", "sepia", "poster", "outlined")
"""The looks of whole pictures."""

KINDS = ("colour", "texture", "shape", "background", "style", "add")
"""Kinds of edits, by what they change. Benchmarks take them in this order."""
BEST_FIRST = ("background", "style", "colour", "shape", "texture", "add")
"""The same by how much of an edit the demo model makes: by how many dB its edits are closer to the
truth than the unedited sources are, on average (README.md, "Figures")."""
CLEAR = 17
"""The seed of `anyv2v demo` by default: chosen by eye among 24, because the motion and the edit can
be seen clearly. The figures are those of other scenes, none of which was chosen."""

SPLITS = {"train": 0, "validation": 10**9, "held-out": 2 * 10**9}
"""Split (set of scenes for one purpose) -> the seed of its first scene."""


@dataclass(frozen=True)
class Motion:
    """A path of a sprite over the clip: the sum of a line, a bend, hops and an orbit.

    It is parametrized by u, from 0 (first frame) to 1 (last frame). Lengths are fractions of the
    picture's shorter side; angles are in radians, clockwise.
    """

    words: str
    """The motion as the caption describes it, such as "moving left"."""
    x: float
    """Middle of the path, from the left of the largest centered square, as a fraction of its
    side."""
    y: float
    """Middle of the path, from the top of the largest centered square, as a fraction of its
    side."""
    angle: float = 0.0
    """Direction of the line, in radians clockwise from pointing right."""
    reach: float = 0.0
    """Length of the line, as a fraction of the picture's shorter side."""
    bend: float = 0.0
    """How far the middle of the line is bent away from its ends, as a fraction of the picture's
    shorter side; positive to the right of its direction."""
    hop: float = 0.0
    """Height of the hops, as a fraction of the picture's shorter side."""
    beats: float = 0.0
    """Number of hops over the clip."""
    radius: float = 0.0
    """Radius of the orbit, as a fraction of the picture's shorter side."""
    sweep: float = 0.0
    """Angle that the orbit covers over the clip, in radians, positive clockwise."""
    phase: float = 0.0
    """Phase of hops and orbit in the first frame, in radians."""
    growth: float = 1.0
    """Ratio of the sprite's size in the last frame to that in the first."""
    tilt: float = 0.0
    """Orientation of the sprite in the first frame, in radians clockwise."""
    turn: float = 0.0
    """Change of the sprite's orientation over the clip, in radians, positive clockwise."""
    spin: float = 0.0
    """Angle by which the sprite turns in depth over the clip, about its own upright axis as a card
    does, in radians. In the first frame it faces the viewer."""


@dataclass(frozen=True)
class Sprite:
    """One moving shape."""

    form: str
    """One of `FORMS`."""
    color: str
    """A key of `COLORS`."""
    texture: str
    """One of `TEXTURES`."""
    size: float
    """About half of the sprite's extent in the middle of the clip, as a fraction of the picture's
    shorter side."""
    motion: Motion
    attached: bool = False
    """Whether the sprite moves along with the one before it in the scene; the caption then says
    so."""


@dataclass(frozen=True)
class Background:
    """A pattern that fills the picture, in a color and a lighter shade of it."""

    pattern: str
    """One of `PATTERNS`."""
    color: str
    """A key of `BACKGROUND_COLORS`."""
    angle: float
    """Direction in which the pattern repeats, in radians clockwise from pointing right."""
    period: float
    """Length after which stripes and checks repeat, as a fraction of the picture's shorter side."""
    phase: float
    """Phase of the pattern in the first frame, in periods."""
    pan: float
    """How far the pattern moves over the clip, as a fraction of the picture's shorter side; a
    positive number moves it against the direction of `angle`."""


@dataclass(frozen=True)
class Light:
    """What the colors of a scene are multiplied by, before the style: the same for all colors."""

    first: float = 1.0
    """Brightness in the first frame; 1 leaves the colors as they are."""
    last: float = 1.0
    """Brightness in the last frame; linear in time between the two."""
    falloff: float = 0.0
    """Part of the light that is lost from one side of the largest centered square to the other, 0
    to 1; linear between the two."""
    angle: float = 0.0
    """Direction in which light is lost, in radians clockwise from pointing right."""


@dataclass(frozen=True)
class Scene:
    """What one clip shows."""

    sprites: tuple[Sprite, ...]
    """The sprites from the back to the front."""
    background: Background
    style: str = "natural"
    """One of `STYLES`."""
    light: Light = Light()
    """How the scene is lit; by default evenly and always alike."""
    noise: float = 0.0
    """Standard deviation of the recording's noise, 1 being the brightest value: independent in each
    frame, pixel and color, added after the style."""
    noise_seed: int = 0
    """Seed of the noise; scenes of equal seeds have the same noise at the same size."""

    @property
    def caption(self) -> str:
        """The description of the clip, in words of `vocabulary`."""
        text = ""
        for i, sprite in enumerate(self.sprites):
            text += "" if i == 0 else " with " if sprite.attached else " and "
            text += f"a {sprite.texture} {sprite.color} {sprite.form}"
            text += "" if sprite.attached else f" {sprite.motion.words}"
        pan = " panning" if self.background.pan else ""
        return f"{text} over{pan} {self.background.pattern} {self.background.color}, {self.style}"


@dataclass(frozen=True)
class SceneEdit:
    """An edit: a scene, and the scene that it should become."""

    source: Scene
    """The scene before the edit."""
    truth: Scene
    """The scene after the edit."""
    sprite: int
    """Index in `truth.sprites` of the sprite that scores look at: the one that the edit changes or
    adds, or else the first."""


def draw_scene(split: str, index: int) -> Scene:
    """Draws a random scene of one to three sprites, most often one.

    split: a key of `SPLITS`. index: number of the scene in the split, from 0. Equal arguments give
    equal scenes.
    """
    rng = random.Random(SPLITS[split] + index)
    sprites = [_sprite(rng)]
    company = rng.choices(("none", "rider", "one", "two"), (0.72, 0.14, 0.10, 0.04))[0]
    if company == "rider":
        sprites.append(_attached_sprite(rng, sprites[0]))
    elif company != "none":
        sprites += [_sprite(rng) for _ in range(1 if company == "one" else 2)]
    natural = rng.random() < 0.8
    style = "natural" if natural else rng.choice(STYLES[1:])
    return Scene(tuple(sprites), _background(rng), style)


def draw_edit(kind: str, split: str, index: int) -> SceneEdit:
    """Draws a random edit of the scene that `draw_scene` draws for the same split and index.

    kind: one of `KINDS`. The scene is adapted to the kind first: "add" keeps only its first sprite,
    "style" makes its style natural. Equal arguments give equal edits. Raises ValueError for another
    kind.
    """
    scene = draw_scene(split, index)
    # a generator of its own, so that each kind of edit can be drawn for the same scene
    rng = random.Random(f"{kind} {SPLITS[split] + index}")
    i, sprites, background = 0, scene.sprites, scene.background
    if kind == "add":
        scene = replace(scene, sprites=sprites[:1])
        sprites = (sprites[0], _attached_sprite(rng, sprites[0]))
        return SceneEdit(scene, replace(scene, sprites=sprites), 1)
    if kind == "style":
        scene = replace(scene, style="natural")
        return SceneEdit(scene, replace(scene, style=rng.choice(STYLES[1:])), i)
    if kind == "background":
        background = replace(
            background,
            color=_other(rng, BACKGROUND_COLORS, background.color),
            pattern=_other(rng, PATTERNS, background.pattern),
        )
        return SceneEdit(scene, replace(scene, background=background), i)
    if kind == "colour":
        changed = replace(sprites[i], color=_other(rng, COLORS, sprites[i].color))
    elif kind == "texture":
        changed = replace(sprites[i], texture=_other(rng, TEXTURES, sprites[i].texture))
    elif kind == "shape":
        changed = replace(sprites[i], form=_other(rng, FORMS, sprites[i].form))
    else:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    return SceneEdit(scene, replace(scene, sprites=(changed, *sprites[1:])), i)


def vocabulary() -> list[str]:
    """Lists all words that captions consist of, sorted; the comma is not among them."""
    words: set[str] = set("a with and over panning natural".split())
    for group in (
        COLORS,
        BACKGROUND_COLORS,
        FORMS,
        TEXTURES,
        PATTERNS,
        STYLES,
        *MOTION_WORDS.values(),
    ):
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
"""Kind of motion -> the words by which captions describe it."""


def _sprite(rng: random.Random) -> Sprite:
    texture = "plain" if rng.random() < 0.7 else rng.choice(TEXTURES[1:])
    return Sprite(
        form=rng.choice(FORMS),
        color=rng.choice(list(COLORS)),
        texture=texture,
        size=rng.uniform(0.14, 0.21),
        motion=_motion(rng),
    )


def _attached_sprite(rng: random.Random, carrier: Sprite) -> Sprite:
    """Draws a smaller sprite that touches another one and moves with it."""
    side = rng.choice((0, 1, 2, 3)) * math.pi / 2
    distance = 0.8 * carrier.size + 0.06
    motion = replace(
        carrier.motion,
        x=carrier.motion.x + distance * math.cos(side),
        y=carrier.motion.y + distance * math.sin(side),
        growth=1.0,
    )
    others = [c for c in COLORS if c != carrier.color]
    return Sprite(rng.choice(FORMS[:4]), rng.choice(others), "plain", 0.10, motion, attached=True)


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


def _background(rng: random.Random) -> Background:
    return Background(
        pattern=rng.choice(PATTERNS),
        color=rng.choice(list(BACKGROUND_COLORS)),
        angle=rng.randrange(4) * math.pi / 4,
        period=rng.uniform(0.22, 0.36),
        phase=rng.random(),
        pan=0.0 if rng.random() < 0.6 else rng.choice((-1, 1)) * rng.uniform(0.12, 0.26),
    )


def _other(rng: random.Random, choices, current: str) -> str:
    return rng.choice([c for c in choices if c != current])
