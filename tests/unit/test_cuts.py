"""Cuts are found, and motion, fades, flashes, light and noise are taken for none."""

import numpy as np
import pytest
from PIL import Image

from anyv2v.media.cuts import find_cuts


def world(seed, size=400):
    """A large picture with coarse and fine detail, through which a camera moves."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (9, 40)]
    coarse, fine = (
        np.array(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC), float)
        for x in layers
    )
    return 0.7 * coarse + 0.3 * fine


def take(seed, count, speed=2, size=96):
    """Frames of a camera that goes to and fro at `speed` pixels a frame: float (f, h, w, 3)."""
    picture = world(seed)
    path = np.abs((speed * np.arange(count)) % 400 - 200)
    return np.stack([picture[100 : 100 + size, p : p + size] for p in path])


def cuts(*takes):
    return find_cuts(frame.clip(0, 255).astype(np.uint8) for take in takes for frame in take)


@pytest.mark.parametrize("speed", [0, 2, 4])
def test_cuts_are_found(speed):
    lengths = [5, 16, 3, 40, 7]
    takes = [take(seed, length, speed) for seed, length in enumerate(lengths)]
    assert cuts(*takes) == [5, 21, 24, 64]


def test_a_cut_between_a_still_and_a_moving_scene_is_found():
    assert cuts(take(1, 20, 0), take(2, 20, 4), take(3, 20, 0)) == [20, 40]
    assert cuts(take(1, 20, 0) * 0, take(2, 20, 2)) == [20]


@pytest.mark.parametrize("speed", [0, 2, 8, 30, 77])
def test_motion_is_no_cut(speed):
    """Up to a speed by which a frame shows hardly anything of the one before."""
    assert cuts(take(0, 90, speed)) == []


def test_light_is_no_cut():
    frames, white = take(0, 60), 255.0
    flash = frames.copy()
    flash[20] = white - 0.1 * (white - frames[20])
    flash[40:42] = white - 0.2 * (white - frames[40:42])
    lamp = frames * np.where(np.arange(60) < 30, 1, 0.4)[:, None, None, None]
    noise = frames + np.random.default_rng(0).normal(0, 25, frames.shape)
    for changed in (flash, lamp, noise):
        assert cuts(changed) == []


@pytest.mark.parametrize("length", [6, 12, 25])
def test_fades_are_no_cuts(length):
    """To black and, in another scene, from black; and a dissolve."""
    down, steps = np.linspace(1, 0, length), [slice(None), None, None, None]
    there, back = take(1, 30 + length), take(2, 30 + length)
    there[30:] *= down[tuple(steps)]
    back[:length] *= down[::-1][tuple(steps)]
    assert cuts(there, back * 0, back) == []
    weight = np.clip((np.arange(60) - 20) / max(length, 8), 0, 1)[tuple(steps)]
    assert cuts((1 - weight) * take(1, 60) + weight * take(2, 60)) == []


def test_few_frames_have_none():
    assert cuts(take(0, 1)) == [] == cuts(take(0, 2)) == find_cuts([])
    still = np.full((6, 8, 8, 3), 9.0)
    assert cuts(still) == []
    # of a single frame it cannot be told whether it is a flash
    other = take(0, 18)
    other[9] = take(1, 1)[0]
    assert cuts(other) == []
