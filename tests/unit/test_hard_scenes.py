"""Scenes in which colors cannot be copied, against their closed forms; ordinary scenes as ever."""

import hashlib
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from anyv2v.weights.demo.hard import HARDSHIPS, draw_hard_edit
from anyv2v.weights.demo.render import THINNEST, render
from anyv2v.weights.demo.scenes import (
    FORMS,
    KINDS,
    SPLITS,
    Background,
    Light,
    Motion,
    Scene,
    Sprite,
    draw_edit,
    draw_scene,
)

SIZE, FRAMES = (32, 32), 8
GREY = Background("plain", "grey", 0.0, 0.3, 0.0, 0.0)
EMPTY = Scene((), GREY)
RENDERED = [
    (100.905, 31.079),
    (99.066, 31.157),
    (91.594, 49.384),
    (83.490, 43.679),
    (75.341, 42.067),
    (139.603, 31.646),
]
"""Mean and standard deviation of the true edits of scenes 0 to 5, of the kinds in turn."""
OPTIONAL = {Scene: ("light", "noise", "noise_seed"), Motion: ("spin",)}


def clip(scene: Scene, size=SIZE) -> np.ndarray:
    return render([scene], size, FRAMES).frames[0].numpy().astype(float)


def values(drawn) -> list:
    """The values of a scene, but for those that ordinary scenes leave at their default."""
    if isinstance(drawn, tuple):
        return [values(each) for each in drawn]
    if not hasattr(drawn, "__dataclass_fields__"):
        return drawn
    names = [f.name for f in fields(drawn) if f.name not in OPTIONAL.get(type(drawn), ())]
    return [values(getattr(drawn, name)) for name in names]


def test_training_draws_the_scenes_and_edits_that_it_always_drew():
    drawn = [values(draw_scene(split, i)) for split in SPLITS for i in range(200)]
    edits = [draw_edit(kind, "held-out", i) for kind in KINDS for i in range(60)]
    drawn += [values(scene) for edit in edits for scene in (edit.source, edit.truth)]
    digest = hashlib.sha256(repr(drawn).encode()).hexdigest()
    assert digest == "3509f643be936c2060cb1ddeed2036c75fc97fb10678f4d72f8fb3a4c050aff7"


def test_ordinary_scenes_are_rendered_as_ever():
    """Mean and spread of each clip, in levels: a hash would depend on the processor's sines."""
    edits = [draw_edit(kind, "held-out", i) for i, kind in enumerate(KINDS)]
    clips = render([e.truth for e in edits], SIZE, FRAMES).frames.double()
    found = [(float(c.mean()), float(c.std())) for c in clips]
    assert np.array(found) == pytest.approx(np.array(RENDERED), abs=0.01)


@pytest.mark.parametrize("hardship", HARDSHIPS)
def test_a_hard_neighbour_in_the_batch_leaves_an_ordinary_scene_alone(hardship):
    scenes = [draw_edit("colour", "validation", 7).source, draw_scene("validation", 8)]
    hard = draw_hard_edit("colour", hardship, "validation", 7).source
    before, after = (render(both, SIZE, FRAMES).frames for both in (scenes, [hard, scenes[1]]))
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("hardship", HARDSHIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hard_edit_is_an_ordinary_one_with_the_hardship_before_and_after(kind, hardship):
    hard, plain = draw_hard_edit(kind, hardship, "validation", 5), draw_edit(kind, "validation", 5)
    assert hard == draw_hard_edit(kind, hardship, "validation", 5)
    assert hard.sprite == plain.sprite
    for before, after in ((plain.source, hard.source), (plain.truth, hard.truth)):
        assert values(before) == values(after) and before != after
        assert before.caption == after.caption
    source, truth = hard.source, hard.truth
    assert source.light == truth.light and source.sprites[0].motion == truth.sprites[0].motion
    assert (source.noise, source.noise_seed) == (truth.noise, truth.noise_seed)


def test_another_hardship_is_refused():
    with pytest.raises(ValueError, match="hardship: 'rain' is not one of noise, shading, light"):
        draw_hard_edit("colour", "rain", "validation", 0)


def test_noise_has_its_deviation_and_is_new_in_every_frame_pixel_and_color():
    level = 0.45 * 255
    noise = clip(replace(EMPTY, noise=0.05, noise_seed=3), (64, 64)) - level
    # 98,304 values: their deviation is known to 0.23 %; rounding adds 0.08 levels squared
    assert noise.std() == pytest.approx(math.hypot(0.05 * 255, 12**-0.5), rel=0.01)
    assert abs(noise.mean()) < 0.2
    for axis in range(4):
        first, second = np.split(noise.take(range(noise.shape[axis] // 2 * 2), axis), 2, axis)
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    for shifted in (noise[1:] - noise[:-1], np.diff(noise, axis=1), np.diff(noise, axis=3)):
        assert shifted.std() == pytest.approx(math.sqrt(2) * noise.std(), rel=0.01)


def test_noise_is_the_same_before_and_after_an_edit_and_another_in_other_scenes():
    edit = draw_hard_edit("colour", "noise", "validation", 11)
    quiet = draw_edit("colour", "validation", 11)
    same = (clip(quiet.source) == clip(quiet.truth)).all(-1)
    assert 0.5 < same.mean() < 1
    assert (clip(edit.source) == clip(edit.truth))[same].all()
    one, other = (clip(replace(EMPTY, noise=0.05, noise_seed=seed)) for seed in (1, 2))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("ends", [(1.0, 0.5), (0.4, 1.0)])
def test_brightness_follows_the_light_along_the_clip(ends):
    # a striped background and a sprite: whatever the scene shows
    scene = replace(draw_scene("validation", 2), style="natural")
    ratio = clip(replace(scene, light=Light(*ends))).mean((1, 2, 3)) / clip(scene).mean((1, 2, 3))
    assert ratio == pytest.approx(np.linspace(*ends, FRAMES), rel=0.01)


@pytest.mark.parametrize("eighth", range(8))
def test_light_is_lost_from_side_to_side(eighth):
    angle = eighth * math.pi / 4
    lit = clip(replace(EMPTY, light=Light(falloff=0.6, angle=angle)))
    assert (lit == lit[:1]).all()
    at = (np.arange(32) + 0.5) / 32
    across, down = round(math.cos(angle)), round(math.sin(angle))
    # from 0 at one side or corner to 1 at the other, in steps that are equal along either side
    x, y = (at if step > 0 else 1 - at for step in (across, down))
    weights = abs(across), abs(down)
    way = (weights[0] * x[None] + weights[1] * y[:, None]) / sum(weights)
    assert lit[0] == pytest.approx((0.45 * 255 * (1 - 0.6 * way))[..., None] + 0 * lit[0], abs=0.51)


@pytest.mark.parametrize("form", FORMS)
def test_a_sprite_that_turns_in_depth_gets_narrower_and_keeps_its_height_and_place(form):
    motion = Motion("", 0.5, 0.5, spin=2.0)
    scenes = [
        Scene((Sprite(form, "red", "plain", 0.2, m),), GREY)
        for m in (motion, replace(motion, spin=0))
    ]
    spun, still = render(scenes, (128, 128), FRAMES).covers[:, 0].double()
    width = np.maximum(np.abs(np.cos(np.linspace(0, 2.0, FRAMES))), THINNEST)
    assert width.min() == THINNEST and width[-1] > 0.4, "it is seen edge-on, and then its back"
    areas = spun.sum((1, 2)) / still.sum((1, 2))
    assert areas.numpy() == pytest.approx(width, rel=0.03)
    heights, widths = ((c.amax(axis) > 0.5).sum(1).numpy() for axis, c in ((2, spun), (1, spun)))
    assert np.abs(heights - heights[0]).max() <= 6, "soft edges take a little off tips"
    assert widths / widths[0] == pytest.approx(width, abs=0.04)
    grid = torch.arange(128).double() - 63.5
    assert (spun.sum(1) @ grid / spun.sum((1, 2))).abs().max() < 0.05
    assert torch.equal(spun[0], still[0])


def test_the_edge_of_a_narrowed_sprite_is_as_soft_as_that_of_a_full_one():
    """Straight edges, 1.2 pixels wide across, cut by rows at an angle of 0.3 + 90 degrees."""
    motion = Motion("", 0.5, 0.5, tilt=0.3, spin=1.3)
    square = Scene((Sprite("square", "red", "plain", 0.2, motion),), GREY)
    rows = render([square], (128, 128), FRAMES).covers[0, 0, :, 54:74].double()
    # the mean of c (1 - c) over a linear ramp is a sixth of its width
    soft = (rows * (1 - rows)).sum(-1).mean(-1)
    assert soft.numpy() == pytest.approx(2 * 1.2 / 6 / math.cos(0.3), rel=0.05)
