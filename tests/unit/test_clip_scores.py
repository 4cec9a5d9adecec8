"""Scores by CLIP against their definitions written out, on embeddings that are known.

Whether a fitting prompt scores higher than another cannot be tested here: the weights are random.
"""

import math

import numpy as np
import pytest
import torch

from anyv2v.errors import InputError
from anyv2v.evaluation.clip_model import load
from anyv2v.evaluation.clip_scores import (
    clip_image_consecutive,
    clip_image_frame,
    clip_image_pairs,
    clip_score,
    clip_scores,
    clip_text,
)
from tests.oracles import clip_snapshot

# at 0, 60 and 180 degrees, of different lengths
FRAMES = np.array([[2.0, 0.0], [0.5, math.sqrt(0.75)], [-3.0, 0.0]])
ACROSS = np.array([[0.0, 7.0]])


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(clip_snapshot.write(tmp_path_factory.mktemp("clip") / "tiny"), "cpu")


def moving(count=5):
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, 40, 56, 3)).astype(np.uint8)


def test_known_angles_give_known_scores():
    assert clip_text(FRAMES, ACROSS) == pytest.approx(math.cos(math.radians(30)) / 3)
    # 60 and 120 degrees
    assert clip_image_consecutive(FRAMES) == pytest.approx(0, abs=1e-12)
    # and 180
    assert clip_image_pairs(FRAMES) == pytest.approx(-1 / 3)
    assert clip_image_frame(FRAMES, FRAMES[1:2]) == pytest.approx((0.5 + 1 - 0.5) / 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_their_definitions(dtype):
    random = np.random.RandomState(1)
    frames = (random.standard_normal((6, 33)) + 1).astype(dtype)
    text = random.standard_normal((1, 33)).astype(dtype)
    exact, (words,) = frames.astype(np.float64), text.astype(np.float64)
    consecutive = np.mean([cosine(a, b) for a, b in zip(exact, exact[1:], strict=False)])
    pairs = np.mean([cosine(exact[i], exact[j]) for i in range(6) for j in range(6) if i != j])
    means = np.mean([cosine(x, words) for x in exact])
    for given in (lambda x: x, torch.from_numpy):
        assert clip_image_consecutive(given(frames)) == pytest.approx(consecutive, abs=1e-12)
        assert clip_image_pairs(given(frames)) == pytest.approx(pairs, abs=1e-12)
        assert clip_text(given(frames), given(text)) == pytest.approx(means, abs=1e-12)
        assert clip_image_frame(given(frames), given(text)) == pytest.approx(means, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_score_of_torchmetrics_is_100_cosines_and_never_negative(sign):
    frames = sign * np.array([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    # negative cosines of single frames count; only the mean is cut off at 0
    expected = {1: 100 * (1 + 0.6 + 0) / 3, -1: 0.0}[sign]
    assert clip_score(frames, np.array([[2.0, 0.0]])) == pytest.approx(expected)


def test_a_frozen_clip_scores_exactly_1():
    still = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).repeat(7, 1)
    for scale in (1, 1e-3, 3.3):
        assert clip_image_consecutive(still * scale) == 1
        assert clip_image_pairs(still * scale) == 1
        assert clip_image_frame(still, still[:1]) == 1


def test_frames_out_of_order_change_what_it_should():
    turned = np.array([[math.cos(x), math.sin(x)] for x in np.linspace(0, 1.5, 6)])
    swapped = turned[[0, 4, 2, 3, 1, 5]]
    assert clip_image_consecutive(turned) == pytest.approx(math.cos(0.3))
    steps = [4, 2, 1, 2, 4]
    assert clip_image_consecutive(swapped) == pytest.approx(np.mean(np.cos(0.3 * np.array(steps))))
    assert clip_image_pairs(swapped) == pytest.approx(clip_image_pairs(turned), abs=1e-12)


def test_a_clip_is_scored_under_the_name_of_the_model(model):
    frames, frame = moving(), moving(6)[5]
    scores = clip_scores(model, frames, "a robot is dancing", frame)
    images, text = model.encode_images(frames), model.encode_text(["a robot is dancing"])
    assert scores == {
        "clip_text[ViT-48x2/8@32 tiny]": clip_text(images, text),
        "clip_image_consecutive[ViT-48x2/8@32 tiny]": clip_image_consecutive(images),
        "clip_image_pairs[ViT-48x2/8@32 tiny]": clip_image_pairs(images),
        "clip_image_frame[ViT-48x2/8@32 tiny]": clip_image_frame(
            images, model.encode_images(frame[None])
        ),
    }
    assert len(set(scores.values())) == 4 and all(type(x) is float for x in scores.values())


def test_a_clip_without_motion_scores_1(model):
    frames = np.repeat(moving(1), 20, axis=0)
    for name, score in clip_scores(model, frames, frame=frames[0]).items():
        # a matrix product need not round all of its rows alike
        assert score == pytest.approx(1, abs=1e-10), name


def test_scores_without_their_input_are_left_out(model):
    assert [*clip_scores(model, moving(1), "a robot")] == ["clip_text[ViT-48x2/8@32 tiny]"]
    assert [*clip_scores(model, moving(1))] == []
    assert [name.split("[")[0] for name in clip_scores(model, moving(2))] == [
        "clip_image_consecutive",
        "clip_image_pairs",
    ]


def test_a_model_without_a_text_encoder_scores_images_alone(weights):
    scores = clip_scores(load(weights, "cpu"), moving(2), "a robot", moving(1)[0])
    assert [name.split("[")[0] for name in scores] == [
        "clip_image_consecutive",
        "clip_image_pairs",
        "clip_image_frame",
    ]


def test_wrong_shapes_are_refused(model):
    with pytest.raises(InputError, match=r"shape \(1, 2\) cannot be scored: want \(n, d\), n from"):
        clip_image_consecutive(FRAMES[:1])
    with pytest.raises(InputError, match=r"n from 2"):
        clip_image_pairs(FRAMES[:1])
    with pytest.raises(InputError, match=r"shape \(3, 2\) cannot be scored: want \(1, d\)"):
        clip_text(FRAMES, FRAMES)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        clip_image_frame(FRAMES, FRAMES[0])
    with pytest.raises(InputError, match=r"frames must be uint8 \(f, h, w, 3\)"):
        clip_scores(model, moving()[0])
    with pytest.raises(InputError, match="not float64"):
        clip_scores(model, moving() / 255)
