"""Edits that start from a guess: what is carried where, and what sampling then begins at."""

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v import EditRequest, Injection, InputError, Video
from anyv2v.correspondence.features import DECISIVE, carry_by_features
from anyv2v.media.psnr import psnr
from anyv2v.pipeline import editing
from anyv2v.pipeline.guide import Guesses, Guide, Keyframe
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth

slow = pytest.mark.slow
STEPS = 4


def unit(places, dim, seed=0):
    """Orthonormal features, one for each of so many places: (places, dim) float32."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    return torch.from_numpy(matrix[:places]).float()


# carrying by features


def test_values_go_where_the_features_of_their_places_are():
    h, w, seed = 3, 4, np.random.default_rng(1)
    features, values = 7 * unit(h * w, 16), torch.from_numpy(seed.normal(size=(1, 5, h, w)))
    orders = np.stack([np.arange(h * w), *(seed.permutation(h * w) for _ in range(2))])
    clip = features[orders].view(3, h, w, 16)
    carried = carry_by_features([clip], [features.view(h, w, 16)], values)
    wanted = values.flatten(2)[0][:, orders].transpose(0, 1).view(3, 5, h, w)
    # beside a weight of 1 the unknown has 1/12, and each of eleven orthogonal places 12 ** -5
    share = 1 / (1 + 1 / 12)
    assert carried.dtype == values.dtype
    assert (carried - share**1.5 * wanted).abs().max() < 5e-4


def test_a_place_takes_the_value_of_the_reference_that_shows_it():
    features = unit(8, 16)
    both = [features[:4].view(2, 2, 16), features[4:].view(2, 2, 16)]
    values = torch.arange(8.0).view(2, 1, 2, 2)
    order = [5, 0, 3, 6]
    clip = features[order].view(1, 2, 2, 16)
    carried = carry_by_features([clip, clip], both, values)
    wanted = (1 + 1 / 8) ** -1.5 * torch.tensor(order)
    assert (carried.flatten() - wanted).abs().max() < 2e-3


def test_features_coarser_than_the_values_are_interpolated():
    """Between two orthogonal features x and y bilinear interpolation has 3/4 x + 1/4 y."""
    features = unit(2, 2).view(1, 2, 2)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(2, 1)[None, None]
    carried = carry_by_features([features[None]], [features], values)
    mixed = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    # two rows of four places
    weights = 2 * np.exp(mixed @ mixed.T / DECISIVE * np.log(8))
    weights /= weights.sum(1, keepdims=True) + np.exp((1 - DECISIVE) / DECISIVE * np.log(8))
    mean, square = weights @ [1, 2, 3, 4], weights @ [1, 4, 9, 16]
    assert carried.shape == (1, 1, 2, 4)
    assert np.abs(carried[0, 0].numpy() - mean * (mean**2 / square) ** 0.5).max() < 1e-4


def test_what_fits_everywhere_is_given_what_all_places_have_in_common():
    """A plain ground says nothing about its motion, so stripes on it would be guessed wrong."""
    stripes = torch.tensor([1.0, -1.0]).repeat(2, 3).view(1, 1, 2, 6)
    plain = torch.ones(2, 2, 6, 3)
    for common in (0.0, 2.0, torch.inf):
        values = torch.ones_like(stripes) if common == torch.inf else common + stripes
        carried = carry_by_features([plain], [plain[0]], values)
        # of length 2 in the mean, and sqrt(5) in the root mean square
        wanted = {0.0: 0.0, 2.0: 2 * (4 / 5) ** 0.5, torch.inf: 1.0}[common]
        # the twelve places have the weight 1 each, and the unknown 1/12
        assert (carried - wanted * (1 + 1 / 144) ** -1.5).abs().max() < 1e-6


def test_what_is_new_is_given_nothing():
    features = unit(13, 16)
    clip = features[:12].clone().view(1, 3, 4, 16).repeat(2, 1, 1, 1)
    clip[1, 2, 3] = features[12]
    carried = carry_by_features([clip], [features[:12].view(3, 4, 16)], torch.ones(1, 1, 3, 4))
    # its cosines are 0, and the unknown's is 1 - DECISIVE: 12 to 12 ** 4
    assert carried[1, 0, 2, 3] < 2 * 12 ** (-3 * 1.5)
    assert (carried[0] - (1 + 1 / 12) ** -1.5).abs().max() < 1e-3


@pytest.mark.parametrize("places", [16, 64, 400])
def test_one_place_decides_against_any_number_of_others(places):
    """Its cosine is greater by `DECISIVE`, so it counts as much as all others and the unknown."""
    side = round(places**0.5)
    ours = torch.tensor([1.0, 0.0])
    features = torch.tensor([0.8, 0.6]).repeat(side, side, 1)
    features[0, 0] = ours
    values = torch.full((1, 1, side, side), 4.0)
    values[0, 0, 0, 0] = 8
    (carried,) = carry_by_features([ours.expand(1, side, side, 2)], [features], values).unbind(0)
    others = (places - 1) / places / 2
    mean, square = 8 / 2 + 4 * others, 64 / 2 + 16 * others
    assert (carried - mean * (mean**2 / square) ** 0.5).abs().max() < 1e-4


# what sampling begins at


@pytest.fixture
def begun(monkeypatch):
    """Runs stop where they would begin to sample: the latents that they would begin at."""
    seen = []

    def sample(predict, latents, *rest):
        seen.append(latents)
        return latents

    monkeypatch.setattr(editing, "sample", sample)
    return seen


@pytest.fixture(scope="module")
def demo():
    return anyv2v.load("demo", device="cpu")


@pytest.fixture(scope="module")
def scene(demo):
    """A shape that moves over a still, checked ground and gets another color: source, truth."""
    truth = Truth.of(draw_edit("colour", "held-out", 7_000_402), (32, 32), 8)
    return demo.invert(Video(truth.source, 8), "ddim", STEPS), truth


@pytest.mark.parametrize("start", [0, 2])
def test_sampling_begins_at_the_sources_noise_under_the_guess(demo, scene, begun, start):
    source, truth = scene
    settings = {"steps": STEPS, "start": start, "prompt": "a"}
    demo.edit(source, truth.frames[0], guide=Video(truth.frames, 8), **settings)
    alpha_bar = demo.schedule.alpha_bar(demo.schedule.timesteps(STEPS)[start])
    clean = demo.encode_frames(truth.frames).double()
    noisy = source.at(start).double() - alpha_bar**0.5 * source.trajectory.clean.double()
    assert ((alpha_bar**0.5 * clean + noisy) - begun[0]).abs().max() < 1e-5


def test_a_guess_of_no_change_changes_no_bit(demo, scene, begun):
    source, truth = scene
    for guide in (None, source.video, "auto"):
        demo.edit(source, truth.source[0], "a", steps=STEPS, guide=guide)
    assert torch.equal(begun[0], source.at(0)) and torch.equal(begun[1], begun[0])
    assert (begun[2] - begun[0]).abs().max() < 1e-5


def test_random_noise_is_mixed_into_the_guess(demo, scene, begun):
    source, truth = scene
    noise = torch.randn(source.at(0).shape, generator=torch.Generator().manual_seed(3))
    settings = {"steps": STEPS, "guide": Video(truth.frames, 8)}
    for ratio in (0.0, 0.25):
        demo.edit(source, truth.frames[0], "a", random_ratio=ratio, noise=noise, **settings)
    assert torch.allclose(begun[1], 0.25 * noise + 0.75 * begun[0], atol=1e-6)


def test_each_of_several_edits_has_its_own_guess(demo, scene, begun):
    source, truth = scene
    guides = (None, "patches", "auto", Video(truth.frames, 8))
    requests = [EditRequest(truth.frames[0], "a", guide=guide) for guide in guides]
    demo.edit_many(source, requests, steps=STEPS)
    for guide in guides:
        demo.edit(source, truth.frames[0], "a", steps=STEPS, guide=guide)
    together = torch.cat(begun[:-4]).split(1)
    assert all(map(torch.equal, together, begun[-4:]))
    assert len({x.sum().item() for x in together}) == 4


# guesses


def moving(color, frames=5, enters=None, other=(250, 220, 30)):
    """A square of 8 pixels moves over a slope of colors; another comes in at frame `enters`."""
    y, x = np.mgrid[:32, :32]
    clip = np.stack([np.stack([x * 4, y * 4, 60 + x + y], -1).astype(np.uint8)] * frames)
    for i, picture in enumerate(clip):
        picture[4 + i : 12 + i, 3 + 3 * i : 11 + 3 * i] = color
        if enters is not None and i >= enters:
            picture[22:30, 20 - 2 * i : 28 - 2 * i] = other
    return clip


RED, BLUE, YELLOW, PINK = (220, 30, 40), (40, 60, 240), (250, 220, 30), (250, 90, 200)


def guess_of(demo, clip, edited, keyframes=()):
    source = demo.invert(Video(clip, 8), "ddim", 1)
    guesses = Guesses(demo, source, source.settings.options)
    return guesses._copy(Guide("patches", keyframes), edited)


def test_patches_carry_colors_to_where_the_source_shows_the_same(demo):
    source, truth = moving(RED), moving(BLUE)
    guess = guess_of(demo, source, truth[0])
    assert np.array_equal(guess[0], truth[0])
    blue = np.abs(guess.astype(int) - BLUE).max(-1) == 0
    red = np.abs(guess.astype(int) - RED).max(-1) == 0
    assert not red.any()
    # a pixel at the square's edge may take another's match
    assert (blue.sum((1, 2)) > 56).all() and (blue & ~(truth == BLUE).all(-1)).sum() < 20


def test_what_is_new_keeps_the_source_unless_a_keyframe_shows_its_edit(demo):
    source, truth = moving(RED, enters=2), moving(BLUE, enters=2, other=PINK)
    guess = guess_of(demo, source, truth[0])
    inside = (slice(3, None), slice(24, 28), slice(14, 16))
    assert (guess[inside] == YELLOW).all()
    pair = Keyframe(source[2], truth[2])
    guess = guess_of(demo, source, truth[0], [pair])
    assert (guess[inside] == PINK).all()
    square = (np.arange(5)[:, None], np.arange(5)[:, None] + 8, 3 * np.arange(5)[:, None] + 7)
    assert (guess[square] == BLUE).all()


def test_a_keyframe_tells_features_what_the_first_frame_does_not_show(demo):
    """The yellow square comes in later: of its edit only the keyframe knows."""
    clip, truth = moving(RED, 8, enters=2), moving(RED, 8, enters=2, other=PINK)
    source = demo.invert(Video(clip, 8), "ddim", 1)
    guesses = Guesses(demo, source, source.settings.options)
    without = guesses.shift(Guide(), truth[0])
    told = guesses.shift(Guide(keyframes=[Keyframe(clip[3], truth[3])]), truth[0])
    wanted = demo.encode_frames(truth) - source.trajectory.clean
    errors = [(x - wanted)[:, :, 2:].square().sum() for x in (without, told)]
    assert without.abs().max() < 1e-5 and errors[1] < 0.4 * errors[0]


@slow
def test_a_guess_makes_the_demos_edit_better(demo):
    """A shape is added, which the plain edit forgets on the way."""
    change = draw_edit("add", "held-out", 7_000_403)
    truth = Truth.of(change, (32, 32), 8)
    source = demo.invert(Video(truth.source, 8), steps=10, prompt=change.source.caption)

    def score(**settings):
        edit = demo.edit(source, truth.frames[0], change.truth.caption, steps=10, **settings)
        return psnr(edit.frames[1:], truth.frames[1:])

    plain = score()
    assert score(guide="auto") > plain + 0.4
    assert score(guide="patches", start=3) > plain + 3


# other backbones, and arguments


@slow
@pytest.mark.parametrize("name", ["consisti2v", "seine"])
def test_every_backbone_has_features_to_carry_by(name, request, begun):
    editor = anyv2v.load(request.getfixturevalue(f"{name}_weights"), device="cpu", graphs=False)
    clip = moving(RED).repeat(4, 1).repeat(4, 2)
    source = editor.invert(Video(clip, 8), "ddim", 5)
    p = editor.backbone.pinned_frames
    clean, edited = source.trajectory.clean[:, :, p:], moving(BLUE).repeat(4, 1).repeat(4, 2)
    plan = editor.step_plan(5)
    level = plan.steps[0].level
    for guide in (None, "auto", "patches"):
        editor.edit(source, edited[0], "a", steps=5, guide=guide, injection=Injection.none())
    plain, *guided = begun
    wanted = level.alpha * (editor.encode_frames(edited)[:, :, p:] - clean)
    for x, most in zip(guided, (0.95, 0.7), strict=True):
        assert x.shape == plain.shape
        # features of random weights tell something, too
        assert (x - plain - wanted).norm() < most * wanted.norm()


def test_wrong_guides_are_refused_in_one_line(demo, scene):
    source, truth = scene
    small, short = truth.frames[:, :16, :16], truth.frames[:5]
    for guide, words in (
        ("flow", "guide: 'flow' is not one of auto, patches"),
        (3, "guide: 3 is not auto, patches, a Video or a Guide"),
        (Video(short, 8), "guide: 5 frames of 32x32, 8 fps, does not fit the source of 8 frames"),
        (Video(small, 8), "guide: 8 frames of 16x16"),
        (
            Guide(keyframes=[Keyframe(small[0], small[1])]),
            "a keyframe of 16x16 does not fit a source of",
        ),
    ):
        with pytest.raises(InputError) as caught:
            demo.edit(source, truth.frames[0], "a", steps=STEPS, guide=guide)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="frames must be uint8"):
        Guide(keyframes=[Keyframe(truth.frames[0], truth.frames[0] / 255)])
