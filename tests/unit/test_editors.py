"""Stage one: choosing an editor, masks, and the editors that need no weights."""

import warnings

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS, oklab, regions, registry
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.mask import as_mask, blend, detect_changes
from anyv2v.frame_editors.palette import monge, sliced_transport
from anyv2v.frame_editors.style import k_means
from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import COLORS, draw_edit


@pytest.fixture
def picture():
    """A red disc that gets darker downwards, on grey, with noise: uint8 (96, 128, 3), and where."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    disc = (x - 50) ** 2 + (y - 48) ** 2 < 30**2
    light = (1.1 - y / 130)[..., None]
    frame = np.where(disc[..., None], [190, 40, 35], [120, 122, 125]) * light
    return (frame + rng.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8), disc


def chroma_and_hue(colours):
    lab = oklab.from_rgb(colours).reshape(-1, 3).mean(0)
    return np.hypot(*lab[1:]), np.degrees(np.arctan2(lab[2], lab[1]))


def test_oklab_is_the_published_one():
    """Values of the table in Ottosson's text, of XYZ (0.950, 1, 1.089), and of CSS's red."""
    assert np.allclose(oklab.from_rgb(np.array([255, 255, 255], np.uint8)), [1, 0, 0], atol=1e-4)
    red = oklab.from_rgb(np.array([255, 0, 0], np.uint8))
    assert np.allclose(red, [0.62796, 0.22486, 0.12585], atol=1e-4)
    levels = np.random.default_rng(0).integers(0, 256, (999, 3), dtype=np.uint8)
    assert np.array_equal(oklab.to_rgb(oklab.from_rgb(levels)), levels)


def test_a_colour_that_no_screen_shows_loses_chroma_alone():
    wanted = np.array([0.5, 0.3, -0.4])
    shown = oklab.from_rgb(oklab.to_rgb(wanted))
    assert abs(shown[0] - 0.5) < 0.01
    assert abs(np.arctan2(*shown[:0:-1]) - np.arctan2(*wanted[:0:-1])) < 0.03
    assert 0.1 < np.hypot(*shown[1:]) < 0.5


def test_regions_and_specks():
    mask = np.zeros((12, 20), bool)
    mask[1:5, 1:5] = mask[4:9, 5] = mask[10, 12:15] = True
    mask[2, 2] = False
    labels = regions.label_regions(mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert labels[1, 1] == labels[8, 5] != labels[10, 13]
    assert np.all((labels > 0) == mask)
    cleaned = regions.remove_specks(mask, 4)
    assert cleaned[2, 2] and not cleaned[10].any() and cleaned.sum() == 21
    assert np.array_equal(np.unique(regions.label_regions(np.ones((3, 3), bool))), [1])


def test_blur_is_a_mean():
    values = np.random.default_rng(0).random((9, 11))
    assert np.isclose(regions.blur(values, 2)[4, 5], values[2:7, 3:8].mean())
    assert np.allclose(regions.blur(np.ones((4, 5)), 3), 1)
    # beyond the rim lies what is at it
    assert np.isclose(regions.blur(values, 1)[0, 0], values[[0, 0, 1]][:, [0, 0, 1]].mean())


@pytest.mark.parametrize("dtype", [bool, np.float32])
@pytest.mark.parametrize("radius", [0, 1, 7])
def test_erosion_and_dilation_are_the_least_and_the_greatest_of_a_window(dtype, radius):
    values = (np.random.default_rng(0).random((9, 11)) ** 9).round(2).astype(dtype)

    def near(index):
        return slice(max(0, index - radius), index + radius + 1)

    for found, extreme in ((regions.erode, np.min), (regions.dilate, np.max)):
        expected = [[extreme(values[near(y), near(x)]) for x in range(11)] for y in range(9)]
        assert found(values, radius).dtype == dtype
        assert np.array_equal(found(values, radius), expected)


# masks


def test_what_lies_outside_a_mask_is_kept_to_the_bit(picture):
    frame, disc = picture
    edited = 255 - frame
    mask = disc.astype(np.float32)
    found = blend(frame, edited, mask)
    assert np.array_equal(found[~disc], frame[~disc])
    deep = regions.erode(mask, 3) == 1
    assert np.array_equal(found[deep], edited[deep])
    rim = disc & ~deep
    # neither the one nor the other, on the whole
    assert (
        0.1
        < np.mean(np.abs(found[rim].astype(float) - frame[rim]))
        / np.mean(np.abs(edited[rim].astype(float) - frame[rim]))
        < 0.9
    )


def test_a_mask_holds_for_every_editor(picture):
    frame, disc = picture

    class Negative:
        needs = frozenset()

        def __call__(self, request, seeds):
            return [255 - request.frame for _ in seeds]

    found = anyv2v.edit_frame(frame, Negative(), mask=disc)
    assert np.array_equal(found[~disc], frame[~disc])
    assert np.array_equal(found[48, 50], 255 - frame[48, 50])


def test_a_mask_is_read(tmp_path):
    half = Image.new("L", (40, 20))
    half.paste(255, (0, 0, 20, 20))
    half.save(tmp_path / "m.png")
    assert as_mask(tmp_path / "m.png", (10, 20)).shape == (10, 20)
    assert as_mask(np.eye(4, dtype=bool), (4, 4)).sum() == 4
    with pytest.raises(InputError, match="proportions"):
        as_mask(tmp_path / "m.png", (20, 20))
    with pytest.raises(InputError, match="black"):
        as_mask(np.zeros((4, 4)), (4, 4))
    with pytest.raises(InputError, match="within 0 to 1"):
        as_mask(np.full((4, 4), 3.0), (4, 4))


@pytest.mark.parametrize("noise", [0, 2, 10])
def test_what_an_editor_hardly_changed_is_told_from_what_it_meant(picture, noise):
    frame, disc = picture
    rng = np.random.default_rng(1)
    edited = np.where(disc[..., None], frame[..., ::-1], frame)
    edited = np.rint(edited + rng.normal(0, noise, frame.shape)).clip(0, 255).astype(np.uint8)
    mask = detect_changes(frame, edited)
    assert mask[disc].all()
    assert mask[~regions.dilate(disc, 6)].mean() < 0.01
    assert not detect_changes(frame, frame).any()


def test_keep_unchanged_restores_the_rest_of_the_frame(picture):
    frame, disc = picture

    class Everything:
        needs = frozenset()

        def __call__(self, request, seeds):
            edited = np.where(disc[..., None], request.frame[..., ::-1], request.frame)
            return [(edited // 2 * 2).astype(np.uint8) for _ in seeds]

    far = ~regions.dilate(disc, 6)
    assert not np.array_equal(anyv2v.edit_frame(frame, Everything())[far], frame[far])
    kept = anyv2v.edit_frame(frame, Everything(), keep_unchanged=True)
    assert np.array_equal(kept[far], frame[far])
    assert not np.array_equal(kept[disc], frame[disc])


# recolour


def test_recolour_changes_hue_and_keeps_light_and_shade(picture):
    frame, disc = picture
    found = anyv2v.edit_frame(frame, "recolour", "red > blue", lightness=0)
    core, rest = regions.erode(disc, 2), ~regions.dilate(disc, 3)
    assert np.array_equal(found[rest], frame[rest])
    chroma, hue = chroma_and_hue(found[core])
    assert chroma > 0.1 and abs(hue - -96) < 6
    before, after = (oklab.from_rgb(x)[core][:, 0] for x in (frame, found))
    assert np.abs(after - before).mean() < 0.01


def test_recolour_of_the_most_colourful_part_and_of_a_mask(picture):
    frame, disc = picture
    assert np.array_equal(
        anyv2v.edit_frame(frame, "recolour", "blue"),
        anyv2v.edit_frame(frame, "recolour", "#b42822 > #0000ff"),
    )
    y, x = np.mgrid[:96, :128]
    mask = ((x > 90) & (y < 50)).astype(np.float32)
    found = anyv2v.edit_frame(frame, "recolour", "steel blue", mask=mask)
    assert np.array_equal(found[mask == 0], frame[mask == 0])
    chroma, hue = chroma_and_hue(found[5:40, 100:120])
    assert chroma > 0.05 and abs(hue - -114) < 15


def test_checks_of_one_garment_keep_their_white():
    y, x = np.mgrid[:80, :80]
    garment = (abs(x - 40) < 30) & (abs(y - 40) < 30)
    dark = garment & ((x // 4 + y // 4) % 2 == 0)
    frame = np.full((80, 80, 3), 150, np.uint8)
    frame[garment], frame[dark] = (225, 225, 225), (40, 40, 110)
    found = anyv2v.edit_frame(frame, "recolour", "navy > red")
    assert np.array_equal(found[~dark], frame[~dark])
    chroma, hue = chroma_and_hue(found[dark])
    assert chroma > 0.1 and abs(hue - 29) < 6


def test_recolour_is_near_the_truth_of_rendered_scenes():
    """Scenes are drawn again with the other colour; blue on navy is among them."""
    edits = [draw_edit("colour", "validation", i) for i in range(0, 60, 3)]
    clips = render([scene for e in edits for scene in (e.source, e.truth)], (64, 64), 2).frames
    gain = []
    for edit, source, truth in zip(edits, clips[::2], clips[1::2], strict=True):
        source, truth = source[0].numpy(), truth[0].numpy()
        old, new = (s.sprites[edit.sprite].color for s in (edit.source, edit.truth))
        told = " > ".join("#" + bytes(round(255 * v) for v in COLORS[c]).hex() for c in (old, new))
        found = anyv2v.edit_frame(source, "recolour", told, lightness=1)
        gain.append((psnr(found, truth), psnr(source, truth)))
    mean, before = np.mean(gain, 0)
    assert before < 17 and mean > 29 and np.min(gain, 0)[0] > 18


@pytest.mark.parametrize(
    "instruction, words",
    [
        ("red > ultraviolet", "'ultraviolet' is no color"),
        ("red > blue > green", "is not like"),
        ("lime > blue", "nothing in the frame"),
        ("", "needs instruction"),
        ("change the shirt", "no color"),
    ],
)
def test_recolour_refuses(picture, instruction, words):
    with pytest.raises(InputError, match=words):
        anyv2v.edit_frame(picture[0], "recolour", instruction)


# palette


def test_the_gaussian_map_gives_the_references_mean_and_covariance():
    rng = np.random.default_rng(0)
    source, wanted = (rng.random((n, 3)) @ rng.normal(size=(3, 3)) for n in (2000, 3000))
    moved = monge(source, wanted)
    assert np.allclose(moved.mean(0), wanted.mean(0), atol=1e-9)
    assert np.allclose(np.cov(moved.T, bias=True), np.cov(wanted.T, bias=True), atol=1e-8)
    # the gradient of a convex function, which makes it the optimal map: a symmetric matrix
    matrix = np.linalg.lstsq(source - source.mean(0), moved - moved.mean(0), rcond=None)[0]
    assert np.allclose(matrix, matrix.T, atol=1e-8) and np.linalg.eigvalsh(matrix).min() > 0
    assert np.allclose(monge(source, source), source, atol=1e-6)


def test_sliced_transport_gives_the_references_distribution():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(4000, 3))
    sides = rng.choice([-1.0, 1.0], (5000, 3))
    wanted = sides + rng.normal(0, 0.1, sides.shape)
    moved = sliced_transport(source, wanted, np.random.default_rng(1))
    levels = np.linspace(0.02, 0.98, 49)
    for axis in np.random.default_rng(2).normal(size=(5, 3)):
        there = np.quantile(wanted @ axis, levels)
        assert np.abs(np.quantile(moved @ axis, levels) - there).mean() < 0.1
    # which mean and covariance alone do not: three axes of two humps each
    there = np.quantile(wanted[:, 0], levels)
    gaussian = np.quantile(monge(source, wanted)[:, 0], levels)
    assert (
        np.abs(gaussian - there).mean()
        > 0.2
        > np.abs(np.quantile(moved[:, 0], levels) - there).mean()
    )


@pytest.mark.parametrize("method", ["gaussian", "transport"])
def test_palette_takes_the_references_colours(picture, method):
    frame, _ = picture
    reference = np.random.default_rng(3).normal((70, 110, 90), 12, (40, 50, 3))
    reference = reference.clip(0, 255).astype(np.uint8)
    found = anyv2v.edit_frame(frame, "palette", reference=reference, method=method)
    lab, wanted = (oklab.from_rgb(x).reshape(-1, 3) for x in (found, reference))
    assert np.abs(lab.mean(0) - wanted.mean(0)).max() < 0.01
    assert np.allclose(lab.std(0), wanted.std(0), rtol=0.2)
    same = anyv2v.edit_frame(frame, "palette", reference=reference, strength=0)
    assert np.array_equal(same, frame)


# styles


def test_posterise_leaves_few_colours(picture):
    found = anyv2v.edit_frame(picture[0], "posterise", colours=4)
    assert 2 <= len(np.unique(found.reshape(-1, 3), axis=0)) <= 4
    assert psnr(found, picture[0]) > 20


def test_posterise_of_a_picture_of_fewer_colors_is_the_picture(picture):
    flat = np.where(picture[1][..., None], [200, 30, 40], [10, 90, 160]).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = anyv2v.edit_frame(flat, "posterise", colours=8, smooth=0)
    assert np.array_equal(found, flat)


def test_k_means_finds_the_means_of_clusters_that_lie_apart():
    rng = np.random.default_rng(0)
    clusters = [rng.normal(mean, 0.1, (50, 3)) for mean in (0, 5, 10)]
    centers = k_means(np.concatenate(clusters), 3, np.random.default_rng(1))
    expected = np.stack([cluster.mean(0) for cluster in clusters])
    assert np.allclose(centers[centers[:, 0].argsort()], expected, atol=1e-12)


def test_edges_draws_where_there_are_some(picture):
    frame, disc = picture
    found = anyv2v.edit_frame(frame, "edges", paper=True)
    rim = regions.dilate(disc, 1) & ~regions.erode(disc, 1)
    assert found[rim].mean() < 120
    assert np.all(found[~regions.dilate(rim, 3)] == 255)


# choosing one

TOY = '''
from dataclasses import dataclass
from pathlib import Path
import numpy as np

@dataclass(frozen=True)
class Toy:
    """Shifts levels."""
    by: int
    weights: Path | None = None
    scale: float = 1.0
    flip: bool = False
    device: object = None
    needs = frozenset({"instruction"})

    def __call__(self, request, seeds):
        frame = request.frame[:, ::-1] if self.flip else request.frame
        return [(frame * self.scale + self.by + seed).astype(np.uint8) for seed in seeds]
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A new editor: one file, one line."""
    (tmp_path / "toy_editor.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EDITORS, "toy", "toy_editor:Toy")


def test_options_become_what_their_field_is(toy):
    given = {"by": "3", "scale": "0.5", "flip": "yes", "weights": "somewhere"}
    made = registry.make("toy", given, device="cpu", dtype="float32")
    assert (made.by, made.scale, made.flip, str(made.weights)) == (3, 0.5, True, "somewhere")
    assert made.device == "cpu"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"by": "x"}, "'x' is not a whole number"),
        ({"by": "1", "scale": "nan"}, "'nan' is not a number"),
        ({"by": "1", "flip": "maybe"}, "yes or no"),
        ({"by": "1", "colour": "red"}, "no option 'colour'; it has by, weights, scale, flip"),
        ({}, "needs --editor-option by"),
        ({"by": "1", "device": "cpu"}, "no option 'device'"),
    ],
)
def test_wrong_options_are_told(toy, options, words):
    with pytest.raises(InputError, match=words):
        registry.make("toy", options)


def test_every_editor_is_described(toy):
    text = registry.describe()
    for name in EDITORS:
        assert f"\n{name} " in "\n" + text
    assert "method (gaussian or transport, else gaussian)" in text
    assert "by (a whole number, needed)" in text
    with pytest.raises(InputError, match="not one of recolour, palette"):
        registry.find("photoshop")


def test_what_an_editor_needs_is_asked_for(toy, picture):
    with pytest.raises(InputError, match="Toy needs instruction"):
        anyv2v.edit_frame(picture[0], "toy", by=1)
    with pytest.raises(InputError, match="Palette needs reference"):
        anyv2v.edit_frame(picture[0], "palette")
    with pytest.raises(InputError, match="go with the name"):
        anyv2v.edit_frame(picture[0], registry.make("edges"), detail=1.0)


def test_an_editor_that_breaks_its_word_is_named(picture):
    class Small:
        needs = frozenset()

        def __call__(self, request: FrameRequest, seeds):
            return [request.frame[:8] for _ in seeds]

    with pytest.raises(TypeError, match="Small"):
        anyv2v.edit_frame(picture[0], Small())
