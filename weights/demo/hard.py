"""Edits of scenes in which the colors of the first frame are not those of later frames.

The scenes of `scenes.py` are flat in color and free of noise, so whoever finds where a pixel was in
the first frame finds its exact color there. Each hardship of this module breaks that, in a way that
real recordings do. The model is not trained on any of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

from anyv2v.weights.demo.scenes import SPLITS, Light, Scene, SceneEdit, draw_edit


def draw_hard_edit(kind: str, hardship: str, split: str, index: int) -> SceneEdit:
    """Draws the edit that `draw_edit` draws, of a scene with a hardship.

    kind, split, index: see `draw_edit`. hardship: one of `HARDSHIPS`, which the scene has before
    and after the edit alike: the light, the spin and every value of the noise are the same. The
    captions do not mention it. Equal arguments give equal edits. Raises ValueError for another kind
    or hardship.
    """
    if hardship not in HARDSHIPS:
        raise ValueError(f"hardship: {hardship!r} is not one of {', '.join(HARDSHIPS)}")
    edit = draw_edit(kind, split, index)

    def harden(scene: Scene) -> Scene:
        # equal draws for both scenes
        return _CHANGES[hardship](scene, random.Random(f"{hardship} {SPLITS[split] + index}"))

    return SceneEdit(harden(edit.source), harden(edit.truth), edit.sprite)


def _noise(scene: Scene, rng: random.Random) -> Scene:
    """Noise of a recording in little light, which moves with nothing."""
    return replace(scene, noise=rng.uniform(0.03, 0.06), noise_seed=rng.randrange(2**31))


def _shading(scene: Scene, rng: random.Random) -> Scene:
    """One side of the picture is lit less, so that what moves gets darker or lighter."""
    falloff, angle = rng.uniform(0.6, 0.8), rng.randrange(8) * math.pi / 4
    return replace(scene, light=Light(falloff=falloff, angle=angle))


def _light(scene: Scene, rng: random.Random) -> Scene:
    """The light goes down, or up, along the clip."""
    ends = 1.0, rng.uniform(0.4, 0.6)
    return replace(scene, light=Light(*ends if rng.random() < 0.5 else reversed(ends)))


def _depth(scene: Scene, rng: random.Random) -> Scene:
    """The first sprite turns as a card does: it gets narrower, and wider again at times."""
    first, *others = scene.sprites
    first = replace(first, motion=replace(first.motion, spin=rng.uniform(1.0, 2.2)))
    return replace(scene, sprites=(first, *others))


_CHANGES: dict[str, Callable[[Scene, random.Random], Scene]] = {
    "noise": _noise,
    "shading": _shading,
    "light": _light,
    "depth": _depth,
}

HARDSHIPS = tuple(_CHANGES)
"""What makes a scene hard: noise, shading that depends on the place, light that changes along the
clip, and a sprite that turns in depth."""
