"""The rendered scenes, their captions and edits, and the scores that judge a clip."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anyv2v.weights.demo import scores
from anyv2v.weights.demo.recipe import TOKENS, tokenizer_files
from anyv2v.weights.demo.render import render, tracks
from anyv2v.weights.demo.scenes import (
    COLORS,
    KINDS,
    Background,
    Motion,
    Scene,
    Sprite,
    draw_edit,
    draw_scene,
    vocabulary,
)

SIZE, FRAMES = (32, 32), 8
PLAIN = Background("plain", "grey", 0.0, 0.3, 0.0, 0.0)


def disc(motion: Motion, size: float = 0.2, **other) -> Sprite:
    return Sprite(
        **{"form": "circle", "color": "red", "texture": "plain", **other}, size=size, motion=motion
    )


def test_a_seed_makes_one_scene_and_splits_share_none():
    assert draw_scene("train", 5) == draw_scene("train", 5)
    drawn = [
        draw_scene(split, i) for split in ("train", "validation", "held-out") for i in range(99)
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_disc_covers_the_area_and_stands_where_its_motion_says():
    sprite = disc(Motion("", 0.5, 0.45, angle=0.0, reach=0.4))
    rendered = render([Scene((sprite,), PLAIN)], (64, 64), FRAMES)
    cover = rendered.covers[0, 0].double()
    assert cover.sum((1, 2)) / 64**2 == pytest.approx([np.pi * 0.2**2] * FRAMES, rel=0.02)
    grid = (torch.arange(64) + 0.5).double() / 64
    x = (cover.sum(1) * grid).sum(1) / cover.sum((1, 2))
    y = (cover.sum(2) * grid).sum(1) / cover.sum((1, 2))
    assert x.numpy() == pytest.approx(np.linspace(0.3, 0.7, FRAMES), abs=0.002)
    assert y.numpy() == pytest.approx([0.45] * FRAMES, abs=0.002)
    inside = rendered.frames[0][cover > 0.999].float().mean(0) / 255
    assert inside.numpy() == pytest.approx(COLORS["red"], abs=0.01)


def test_those_in_front_hide_those_behind():
    back = disc(Motion("", 0.5, 0.5))
    front = disc(Motion("", 0.5, 0.5), 0.25, color="blue")
    hidden = render([Scene((back, front), PLAIN)], SIZE, 2)
    assert torch.equal(hidden.frames, render([Scene((front,), PLAIN)], SIZE, 2).frames)
    assert hidden.covers[0, 0].max() == 0


def test_a_batch_is_what_each_scene_is_alone():
    scenes = [draw_scene("train", i) for i in range(12)]
    together = render(scenes, SIZE, FRAMES).frames
    for i, scene in enumerate(scenes):
        alone = render([scene], SIZE, FRAMES).frames[0]
        assert (alone.int() - together[i].int()).abs().max() <= 1


def test_a_scene_has_no_resolution():
    """Seen at twice the size and averaged, a scene is the same but for its edges."""
    scenes = [draw_scene("validation", i) for i in range(4)]
    small, large = render(scenes, (32, 32), 4).frames, render(scenes, (64, 64), 4).frames
    mean = large.float().unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
    assert (mean - small.float()).abs().mean() < 6


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_it_says_and_leaves_the_motion(kind):
    edit = draw_edit(kind, "validation", 3)
    assert edit.source != edit.truth
    assert edit.source.sprites[0].motion == edit.truth.sprites[0].motion
    before, after = render([edit.source, edit.truth], SIZE, FRAMES).frames
    assert not torch.equal(before[0], after[0]), "the first frame has to show the edit"
    if kind in ("colour", "texture", "shape", "add"):
        assert edit.source.background == edit.truth.background
        same = (before == after).all(-1).float().mean()
        assert same > 0.5


def test_every_word_of_every_caption_is_one_token():
    vocab, merges = tokenizer_files()
    pairs = {tuple(line.split()) for line in merges.splitlines()[1:]}
    assert all("".join(pair) in vocab for pair in pairs)
    for word in vocabulary():
        assert word + "</w>" in vocab
    for i in range(300):
        words = draw_scene("train", i).caption.replace(",", " ,").split()
        assert all(word + "</w>" in vocab for word in words)
        assert len(words) + 2 <= TOKENS


@pytest.mark.parametrize("moved", [(0.0, 0.0), (1.5, -0.7), (-4.0, 3.2)])
def test_the_tracker_measures_a_known_displacement_in_any_colour(moved):
    """On ground truth: the same scenes with the sprite displaced and painted otherwise."""
    errors = []
    for i in range(12):
        edit = draw_edit("colour", "validation", i)
        truth = scores.Truth.of(edit, SIZE, FRAMES)
        # the source has another colour, and now stands elsewhere
        sprite = edit.source.sprites[0]
        motion = sprite.motion
        motion = replace(motion, x=motion.x + moved[0] / 32, y=motion.y + moved[1] / 32)
        sprites = (replace(sprite, motion=motion), *edit.source.sprites[1:])
        clip = render([replace(edit.source, sprites=sprites)], SIZE, FRAMES).frames[0].numpy()
        for k in range(1, FRAMES):
            # what leaves the picture or hides cannot be placed
            if truth.cover[k].sum() > 0.95 * truth.cover.sum((1, 2)).max():
                found = scores.offset(clip[k], truth.without[k], truth.cover[k])
                errors.append(np.hypot(found[0] - moved[0], found[1] - moved[1]))
    assert len(errors) > 30
    assert np.median(errors) < 0.15 and np.mean(errors) < 0.4


def test_the_truth_scores_best_and_each_score_sees_its_own_fault():
    edit = draw_edit("colour", "validation", 1)
    truth = scores.Truth.of(edit, SIZE, FRAMES)
    best = scores.scores(truth.frames, truth)
    assert (best["psnr"], best["outside"], best["colour"], best["flicker"]) == (100, 100, 0, 0)
    assert best["ssim"] == pytest.approx(1) and best["trajectory"] < 0.1 and best["iou"] > 0.9
    static = scores.scores(np.repeat(truth.frames[:1], FRAMES, 0), truth)
    assert static["trajectory"] > 1 and static["flicker"] > 5 and static["iou"] < best["iou"]
    unedited = scores.scores(truth.source, truth)
    assert unedited["colour"] > 0.2 and unedited["trajectory"] < 0.3 and unedited["outside"] > 60


def test_ssim_of_known_pictures():
    """Two flat pictures: only the means differ, and the formula has one factor left."""
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 120, np.uint8)
    c1 = 2.55**2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert scores.ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_tracks_are_where_covers_are():
    scene = Scene((disc(Motion("", 0.5, 0.5, radius=0.2, sweep=3.0)),), PLAIN)
    place = tracks([scene], 0, FRAMES)[0]
    cover = render([scene], (64, 64), FRAMES).covers[0, 0]
    for (x, y), c in zip(place.tolist(), cover, strict=True):
        row, column = (
            (c.sum(1) * torch.arange(64)).sum() / c.sum(),
            (c.sum(0) * torch.arange(64)).sum() / c.sum(),
        )
        assert (float(column) + 0.5) / 64 == pytest.approx(x, abs=0.003)
        assert (float(row) + 0.5) / 64 == pytest.approx(y, abs=0.003)
