"""Edited frames back in the full-size picture: where, how exactly, and what stays the original."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media.image import fit_frame
from anyv2v.media.placement import Placement
from anyv2v.media.psnr import psnr

CASES = [
    ((960, 540), (256, 256)),
    ((540, 960), (256, 256)),
    ((517, 389), (128, 96)),
    ((300, 300), (64, 64)),
    ((320, 240), (320, 240)),
    ((100, 100), (256, 192)),
]


def smooth(size, seed=0):
    """A picture without fine detail, so that scaling down and up again loses little."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(("own", "model"), CASES)
def test_an_unedited_frame_lies_where_it_came_from(own, model, fit):
    """A shift by one pixel of the model costs more than 3 dB of these."""
    original = smooth(own)
    fitted = fit_frame(original, model, fit)
    whole = Placement(own, model, fit).restore(fitted, original)
    assert whole.shape == original.shape
    assert psnr(whole, original) > 44
    moved = Placement(own, model, fit).restore(np.roll(fitted, 1, axis=1), original)
    assert psnr(moved, original) < psnr(whole, original) - 3


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("own", [(96, 64), (95, 63)])
def test_where_no_size_changes_no_pixel_is_resampled(own, fit):
    original, edited = (
        np.random.default_rng(i).integers(0, 256, (own[1], own[0], 3), np.uint8) for i in (0, 1)
    )
    place = Placement(own, own, fit)
    np.testing.assert_array_equal(place.restore(edited, original), edited)
    mask = np.zeros(own[::-1])
    mask[3:30, 40:] = 1
    expected = np.where(mask[..., None] == 1, edited, original)
    np.testing.assert_array_equal(place.restore(edited, original, mask), expected)
    np.testing.assert_array_equal(place.restore(edited, original, mask == 1), expected)


def test_a_crop_at_its_own_scale_is_not_resampled_but_at_the_seam():
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (64, 128, 3), np.uint8)
    edited = rng.integers(0, 256, (64, 64, 3), np.uint8)
    whole = Placement((128, 64), (64, 64), "crop").restore(edited, original)
    np.testing.assert_array_equal(whole[:, :32], original[:, :32])
    np.testing.assert_array_equal(whole[:, 96:], original[:, 96:])
    # the seam is 64 / 64 = 1 pixel wide: its middle is half of both
    np.testing.assert_array_equal(whole[:, 33:95], edited[:, 1:63])
    mean = (original[:, 32].astype(float) + edited[:, 0]) / 2
    assert abs(whole[:, 32] - mean).max() <= 1


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(("own", "model"), CASES[:3])
def test_where_the_mask_is_nought_the_original_stays_to_the_bit(own, model, fit):
    original, edited = smooth(own), 255 - fit_frame(smooth(own), model, fit)
    w, h = model
    mask = np.zeros((h, w), np.float32)
    mask[h // 3 : h // 2, w // 3 : w // 2] = 1
    whole = Placement(own, model, fit).restore(edited, original, mask)
    changed = (whole != original).any(axis=2)
    assert changed.any()
    # the mask's own place in the full-size picture: fitting is linear in x and in y
    ys, xs = np.nonzero(changed)
    grid = np.stack(np.broadcast_arrays(*np.ogrid[: own[1], : own[0]]), -1).astype(np.float64)
    scale = {"crop": max, "pad": min}.get(fit)
    sx, sy = w / own[0], h / own[1]
    sx, sy = (scale(sx, sy),) * 2 if scale else (sx, sy)
    y = (grid[ys, xs, 0] + 0.5 - own[1] / 2) * sy + h / 2
    x = (grid[ys, xs, 1] + 0.5 - own[0] / 2) * sx + w / 2
    assert h // 3 - 1 <= y.min() < y.max() <= h // 2 + 1
    assert w // 3 - 1 <= x.min() < x.max() <= w // 2 + 1


def test_the_mask_and_the_seam_blend_as_they_say():
    """Against PyTorch's bilinear interpolation, in float64."""
    own, model = (240, 160), (60, 40)
    rng = np.random.default_rng(3)
    original = rng.integers(0, 256, (160, 240, 3), np.uint8)
    edited = np.full((40, 60, 3), 200, np.uint8)
    mask = rng.random((40, 60))
    whole = Placement(own, model, "stretch").restore(edited, original, mask)
    weight = F.interpolate(torch.from_numpy(mask)[None, None], (160, 240), mode="bilinear")[0, 0]
    expected = original + weight.numpy()[..., None] * (200.0 - original)
    assert abs(whole - expected).max() < 1.5


def test_pictures_of_other_sizes_are_refused():
    place = Placement((32, 16), (8, 8), "crop")
    original, edited = np.zeros((16, 32, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="^edited: it is 32x16, and must be 8x8"):
        place.restore(original, original)
    with pytest.raises(InputError, match="^original: it is 8x8, and must be 32x16"):
        place.restore(edited, edited)
    with pytest.raises(InputError, match="^mask: it is 8x9, and must be 8x8"):
        place.restore(edited, original, np.zeros((9, 8)))
    with pytest.raises(InputError, match="uint8"):
        place.restore(edited.astype(float), original)
    with pytest.raises(InputError, match="^fit: 'fill' is not one of"):
        Placement((32, 16), (8, 8), "fill")
    with pytest.raises(InputError, match="^size: "):
        Placement((32, 0), (8, 8), "pad")
