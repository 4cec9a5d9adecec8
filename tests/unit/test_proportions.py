"""Sizes and proportions: what is cut, what is kept, and which pictures belong together."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageOps

from anyv2v.errors import InputError
from anyv2v.media.image import fit_frame
from anyv2v.media.proportions import (
    alike,
    check_fit,
    fit_like,
    inscribed_size,
    part_cut,
    size_of_short_side,
)


@pytest.mark.parametrize(
    "picture, clip, target, fit",
    [
        ((96, 64), (96, 64), (96, 64), "crop"),
        # the clip's proportions come first: the same part is left of both
        ((1200, 800), (96, 64), (64, 64), "crop"),
        ((64, 64), (96, 64), (64, 64), "stretch"),
        ((64, 64), (96, 64), (96, 64), None),
        # an editor that rounds to multiples of 64
        ((1856, 1024), (1920, 1080), (512, 512), "crop"),
        ((1664, 1024), (1920, 1080), (512, 512), None),
        ((1920, 1088), (1920, 1080), (512, 512), "crop"),
        ((101, 100), (96, 64), (512, 512), "stretch"),
        ((103, 100), (96, 64), (512, 512), None),
        # upright and lying
        ((64, 96), (96, 64), (512, 512), None),
    ],
)
def test_a_picture_beside_a_clip(picture, clip, target, fit):
    assert fit_like(picture, clip, target) == fit
    turned = (size[::-1] for size in (picture, clip, target))
    assert fit_like(*turned) == fit


def test_two_per_cent_are_alike_either_way():
    assert alike((102, 100), (100, 100)) and alike((100, 100), (102, 100))
    assert not alike((1021, 1000), (1, 1)) and not alike((1, 1), (1021, 1000))


def test_what_does_not_belong_is_told_with_what_would():
    with pytest.raises(InputError) as error:
        check_fit("new.png", (64, 64), (1920, 1080), (512, 320))
    for word in ("new.png is 64x64", "1920x1080", "512x320", "--fit crop, stretch or pad"):
        assert word in str(error.value)


@pytest.mark.parametrize("source, target", [((72, 128), (32, 32)), ((1920, 1080), (512, 512))])
def test_the_part_that_is_cut_is_what_a_crop_leaves_out(source, target):
    # every pixel of the source says where it was
    ramp = np.zeros((source[1], source[0], 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, source[0])
    ramp[..., 1] = np.linspace(0, 255, source[1])[:, None]
    left = fit_frame(ramp, target, "crop")
    side, part = part_cut(source, target)
    channel = ["width", "height"].index(side)
    seen = np.ptp(left[..., channel].astype(int)) / 255
    assert 1 - seen == pytest.approx(part, abs=0.05)
    assert np.ptp(left[..., 1 - channel].astype(int)) > 240


def test_the_part_that_is_cut_in_numbers():
    assert part_cut((1920, 1080), (512, 512)) == ("width", pytest.approx(7 / 16))
    assert part_cut((64, 96), (32, 32)) == ("height", pytest.approx(1 / 3))
    assert part_cut((96, 64), (48, 32))[1] == 0


@pytest.mark.parametrize("factor", [1, 4, 8])
@pytest.mark.parametrize("source", [(72, 128), (1920, 1080), (1080, 1920), (640, 480), (97, 31)])
@pytest.mark.parametrize("short", [32, 33, 64, 510, 512])
def test_the_shorter_side_alone(short, source, factor):
    size = size_of_short_side(short, source, factor)
    small, large = sorted(size)
    assert (size[0] <= size[1]) == (source[0] <= source[1])
    assert all(side % factor == 0 for side in size)
    assert abs(small - short) <= factor / 2
    # no multiple is nearer to the proportions
    wanted = Fraction(max(source), min(source)) * small
    assert abs(large - wanted) <= Fraction(factor, 2)


def test_sizes_that_are_known():
    assert size_of_short_side(32, (72, 128), 4) == (32, 56)
    assert size_of_short_side(512, (1920, 1080), 8) == (912, 512)
    assert size_of_short_side(3, (72, 128), 8) == (8, 16)


@pytest.mark.parametrize("source", [(96, 64), (64, 96), (50, 50), (300, 7)])
@pytest.mark.parametrize("target", [(64, 64), (65, 33)])
def test_a_letterbox_is_pillows(source, target):
    noise = np.random.default_rng(5).integers(30, 255, (source[1], source[0], 3), np.uint8)
    found = fit_frame(noise, target, "pad")
    truth = ImageOps.pad(Image.fromarray(noise), target, Image.Resampling.BOX, (0, 0, 0))
    # Pillow rounds where the bars are, we down
    shifts = [np.roll(found, (y, x), (0, 1)) for y in (0, 1) for x in (0, 1)]
    assert any(np.array_equal(shifted, np.array(truth)) for shifted in shifts)
    width, height = inscribed_size(source, target)
    assert (found.max(-1) > 0).sum() == width * height


def test_a_letterbox_of_the_same_proportions_is_the_crop():
    noise = np.random.default_rng(6).integers(0, 255, (90, 120, 3), np.uint8)
    crop, pad = (fit_frame(noise, (40, 30), fit) for fit in ("crop", "pad"))
    assert np.array_equal(crop, pad)
