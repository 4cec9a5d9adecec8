"""Scores of an edited clip: what they are of, when there are none, and what is written of them."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v.errors import InputError
from anyv2v.evaluation import network, report, scores
from anyv2v.evaluation.case import Case
from anyv2v.evaluation.network import Run
from anyv2v.evaluation.report import Judged
from anyv2v.evaluation.scores import Metric, Score
from anyv2v.injection.taps import Record
from anyv2v.protection.mask import Protection
from anyv2v.weights.demo import scores as demo_scores
from anyv2v.weights.demo.scenes import draw_edit
from tests.toy import folder
from tests.toy.backbone import Toy


def named(rows):
    """The first word of a score's name, but for flow_difference its part too -> the score."""
    return {
        s.name.split("[")[0] + ("." + s.name[:-1].split(", ")[1] if "flow_d" in s.name else ""): s
        for s in rows
    }


@pytest.fixture(scope="module")
def scene():
    """A red square that moves by 3 pixels a frame over a fixed picture, and it in green."""
    rng = np.random.default_rng(0)
    small = rng.integers(60, 200, (8, 8, 3))
    background = np.kron(small, np.ones((6, 6, 1))).astype(np.uint8)
    source, truth = (np.repeat(background[None], 4, axis=0) for _ in range(2))
    square = np.zeros((4, 48, 48), bool)
    for i in range(4):
        square[i, 16:28, 8 + 3 * i : 20 + 3 * i] = True
    source[square], truth[square] = (220, 20, 20), (20, 200, 20)
    return source, truth, square


# masks


def test_the_mask_is_carried_along_the_source(scene):
    source, truth, square = scene
    case = Case(truth, source, references={0: truth[0]})
    assert case.mask_name == "auto mask"
    # all of the square may change, and nothing far from it (borders are soft)
    assert (case.masks[square] > 0.5).all() and not case.background[square].any()
    far = np.ones_like(square)
    for i in range(4):
        far[i, 8:36, 3 * i : 28 + 3 * i] = False
    assert case.background[far].all()


def test_no_edit_excuses_its_own_errors(scene):
    """What `Protection` gives to the edit because it differs from the source stays background."""
    source, truth, _ = scene
    ruined = truth.copy()
    ruined[1:, 36:, 36:] = 255 - ruined[1:, 36:, 36:]
    good, bad = (Case(clip, source, references={0: truth[0]}) for clip in (truth, ruined))
    assert np.array_equal(good.masks, bad.masks)
    protection = Protection(source[:1], truth[:1], 4)
    assert (protection.mask(source[2], ruined[2])[38:, 38:] > 0).all()
    found = [named(scores.scores(case))["psnr_background"].value for case in (good, bad)]
    assert found[0] == 100 and found[1] < 21


def test_without_an_edited_frame_frame_0_of_the_edit_takes_its_place(scene):
    source, truth, _ = scene
    case = Case(truth, source)
    assert case.mask_name == "auto mask of frame 0"
    assert np.array_equal(case.masks, Case(truth, source, references={0: truth[0]}).masks)


def test_an_edit_of_everything_has_no_background(scene):
    source, _, _ = scene
    found = named(scores.scores(Case(255 - source, source)))
    assert found["psnr_background"].value is None
    assert "no background" in found["psnr_background"].reason


@pytest.mark.parametrize("shape", [(2, 20, 22), (2, 128, 130), (2, 131, 129)])
def test_masks_are_found_for_clips_of_any_size(shape):
    rng = np.random.default_rng(0)
    source = np.repeat(rng.integers(0, 256, (1, *shape[1:], 3), dtype=np.uint8), 2, axis=0)
    edited = source.copy()
    edited[:, 4:16, 4:16] //= 2
    masks = Case(edited, source).masks
    assert masks.shape == shape and (masks[:, 6:14, 6:14] > 0.9).all()
    assert (masks[:, :, -1] == 0).all()


# what the metrics are of


@pytest.fixture(scope="module")
def three():
    """Three unlike clips of 3 frames, and a mask of each frame with an empty part."""
    rng = np.random.default_rng(1)
    clips = rng.integers(0, 256, (3, 3, 24, 28, 3), dtype=np.uint8)
    mask = np.zeros((3, 24, 28), np.float32)
    mask[:, 4:9, 6:12], mask[1, 20, 20], mask[2, :, 14:] = 1, 0.5, 1
    return *clips, mask


def psnr(a, b):
    return 10 * math.log10(255**2 / ((a.astype(float) - b) ** 2).mean())


def test_each_metric_is_of_what_its_name_says(three):
    pytest.importorskip("cv2")
    edited, source, truth, mask = three
    rows = scores.scores(Case(edited, source, truth, mask=mask))
    found = {name: s.value for name, s in named(rows).items()}
    where = mask[1:] == 0
    a, b, c = (x[1:] for x in (edited, source, truth))
    assert found["background_share"] == pytest.approx(where.mean())
    assert found["psnr_background"] == pytest.approx(psnr(a[where], b[where]), abs=1e-9)
    assert found["psnr_truth"] == pytest.approx(psnr(a, c), abs=1e-9)

    def change(x):
        return np.diff(x.astype(float), axis=0)

    for name, other in (("source", source), ("truth", truth)):
        rms = math.sqrt(((change(edited) - change(other)) ** 2).mean())
        assert found[f"flicker_{name}"] == pytest.approx(rms, rel=1e-9)
    # the truth changes nearly all of this noise
    assert found["psnr_unchanged"] is None
    assert "less than 5% of the pixels" in named(rows)["psnr_unchanged"].reason
    assert all("given mask" in s.name for s in rows if "background" in s.name)


def test_motion_is_told_apart_by_region(scene):
    pytest.importorskip("cv2")
    source, truth, _ = scene
    frozen = np.repeat(truth[:1], 4, axis=0)
    of = {"references": {0: truth[0]}}
    kept, lost = (named(scores.scores(Case(x, source, **of))) for x in (truth, frozen))
    region, background = "flow_difference.edited region of auto mask", "flow_difference.background"
    background += " of auto mask"
    # the square stands still where it moved by 3 pixels
    assert kept[region].value < 0.7 < 0.9 < lost[region].value < 3.2
    assert lost[background].value < lost[region].value / 2
    assert kept["warping_error"].value < lost["warping_error"].value


def test_what_is_not_known_has_no_score_but_a_reason(scene):
    source, truth, _ = scene
    for case, missing in ((Case(truth), "source"), (Case(truth, source), "truth")):
        rows = scores.scores(case)
        assert [s.name for s in rows if s.value is None and s.reason == f"no {missing} is known"]
        assert all((s.value is None) == bool(s.reason) for s in rows)
    names = {s.name.split("[")[0] for s in scores.scores(Case(truth)) if s.value is not None}
    assert names == set()


def test_without_opencv_the_other_scores_are_there(scene, monkeypatch):
    source, truth, _ = scene
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    rows = scores.scores(Case(truth, source, truth))
    missing = {s.name.split("[")[0] for s in rows if ".[evaluate]" in s.reason}
    assert missing == {"flow_difference", "warping_error"}
    assert named(rows)["psnr_truth"].value == 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_no_value(value):
    score = Metric("x", lambda case: value).of(Case(np.zeros((2, 4, 4, 3), np.uint8)))
    assert score.value is None and "the result is" in score.reason


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": np.zeros((2, 8, 9, 3), np.uint8)}, "source"),
        ({"truth": np.zeros((3, 8, 8, 3), np.uint8)}, "truth"),
        ({"references": {0: np.zeros((9, 8, 3), np.uint8)}}, "frame 0"),
        ({"mask": np.zeros((8, 9), np.float32)}, "mask"),
        ({"edited": np.zeros((1, 8, 8, 3), np.uint8)}, "1 frame"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, says):
    with pytest.raises(InputError, match=says):
        Case(**{"edited": np.zeros((2, 8, 8, 3), np.uint8), **fields})


@pytest.mark.parametrize(
    "kind", ["colour", *(pytest.param(x, marks=pytest.mark.slow) for x in ("shape", "background"))]
)
def test_the_demo_has_the_same_scores(kind):
    """`anyv2v demo` computes its own of the same clips; those that both know are equal."""
    truth = demo_scores.Truth.of(draw_edit(kind, "held-out", 3), (32, 32), 8)
    rng = np.random.default_rng(0)
    noisy = np.clip(truth.frames + rng.normal(0, 12, truth.frames.shape), 0, 255).astype(np.uint8)
    for clip in (noisy, np.repeat(truth.frames[:1], 8, axis=0), truth.source):
        theirs = demo_scores.scores(clip, truth)
        # finding a mask takes longer than all scores, and none of these is about it
        mask = np.ones((32, 32), np.float32)
        ours = named(scores.scores(Case(clip, truth.source, truth.frames, mask=mask)))
        for name, other in (
            ("psnr_truth", "psnr"),
            ("ssim_truth", "ssim"),
            ("psnr_unchanged", "outside"),
            ("flicker_truth", "flicker"),
        ):
            missing = math.isnan(theirs[other])
            assert ours[name].value == (None if missing else theirs[other]), name


# reports

SCORES = [Score("a[x]", 1.5, "dB", "higher"), Score("b[y, z]", None, reason="no source is known")]


def test_means_are_over_the_clips_that_have_a_value():
    rows = [[Score("a", 1.0), Score("b", 5.0)], [Score("a", 2.0), Score("b", None, reason="r")]]
    assert scores.means(rows) == {"a": (1.5, 2), "b": (5.0, 1)}


def test_scores_as_json():
    one = {"out.mp4": Judged(SCORES)}
    assert json.loads(report.as_json(one, whole=False)) == {"a[x]": 1.5}
    two = {**one, "é.mp4": Judged([Score("a[x]", 2.5)])}
    assert json.loads(report.as_json(two, whole=True)) == {
        "outputs": {"out.mp4": {"a[x]": 1.5}, "é.mp4": {"a[x]": 2.5}},
        "means": {"a[x]": {"mean": 2.0, "n": 2}},
    }


def test_scores_as_csv_and_text():
    rows = [*csv.reader(io.StringIO(report.as_csv({'o,"1".mp4': Judged(SCORES)})))]
    assert rows == [
        ["output", "metric", "value", "unit", "better", "reason"],
        ['o,"1".mp4', "a[x]", "1.5", "dB", "higher", ""],
        ['o,"1".mp4', "b[y, z]", "", "", "", "no source is known"],
    ]
    assert report.as_text(SCORES) == "a[x]     1.5000 dB\nb[y, z]       - no source is known"


# with the network


@pytest.fixture(scope="module")
def demo():
    return anyv2v.load("demo", device="cpu")


@pytest.fixture(scope="module")
def clip():
    return demo_scores.Truth.of(draw_edit("colour", "held-out", 3), (32, 32), 4)


def test_a_round_trip_is_an_inversion_and_a_reconstruction(demo, clip):
    video = anyv2v.Video(clip.source, 8)
    asked = []
    rows = network.round_trip(
        demo, video, Run("ddim", 4, 2, "a cat"), track=lambda *x: asked.append(x)
    )
    source = demo.invert(video, "ddim", 4, "a cat")
    again = demo.reconstruct(source, "a cat", steps=2)
    clean = demo.encode_frames(clip.source)
    error = float((again.latents - clean).norm() / clean.norm())
    assert rows[0].value == pytest.approx(psnr(again.frames, clip.source), abs=1e-6)
    assert rows[1].value == pytest.approx(error, rel=1e-5)
    assert [s.name for s in rows] == [
        "psnr_round_trip_source[ddim 4, 2 steps back, 4 frames]",
        "latent_error_round_trip_source[ddim 4, 2 steps back, 4 frames]",
    ]
    assert asked == [("invert the source", 4), ("reconstruct the source", 2)]


@pytest.mark.slow
def test_long_clips_are_cut_for_a_round_trip(demo, clip):
    long = anyv2v.Video(np.concatenate([clip.source, clip.frames]), 8)
    short = anyv2v.Video(long.frames[:4], 8)
    run = Run("ddim", 2, 2)
    assert network.round_trip(demo, long, Run("ddim", 2, 2, frames=4)) == network.round_trip(
        demo, short, run
    )


@pytest.mark.slow
def test_the_frame_there_and_back_is_a_still_clip(demo, clip):
    run = Run("ddim", 2, 2, frames=3)
    still = anyv2v.Video(np.repeat(clip.frames[:1], 3, axis=0), 8)
    rows = network.frame_round_trip(demo, clip.frames[0], 4, run)
    assert [s.value for s in rows] == [s.value for s in network.round_trip(demo, still, run)]
    assert rows[0].name == "psnr_round_trip_frame[ddim 2, 2 steps back, 3 frames]"


def test_places_are_found_again_by_features(demo, clip):
    """Against the recorded features themselves, compared in numpy."""
    edited, first = clip.frames, clip.frames[0]
    site, level = demo.backbone.correspondence_site, demo.schedule.levels(10)[-3]
    clean = torch.cat([demo.encode_frames(first[None]), demo.encode_frames(edited)[:, :, 1:]], 2)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    taps = Record(frozenset({site}))
    conditions = demo.condition("", first, 4, (32, 32))
    demo.predict(level.alpha * clean + level.sigma * noise, level.t, conditions, taps)
    (recorded,) = taps.features[site]
    vectors = recorded.double().numpy().reshape(4, -1, recorded.shape[-1])
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = np.mean([(v @ vectors[0].T).max(1) for v in vectors[1:]])
    found = network.feature_match(demo, edited, first, Run())
    assert found == pytest.approx(expected, abs=1e-5)
    frozen = np.repeat(first[None], 4, axis=0)
    strange = np.concatenate([edited[:1], 255 - edited[1:]])
    assert network.feature_match(demo, frozen, first, Run()) > found
    assert network.feature_match(demo, strange, first, Run()) < found


def test_the_path_of_latents(demo, clip):
    latents = demo.encode_frames(clip.frames).double().numpy()[0]
    found = network.latent_path(demo, clip.frames)
    for name, other in zip(network.CURVES, ([0, 0, 0, 0], [0, 0, 1, 2]), strict=True):
        rms = np.sqrt(((latents - latents[:, other]) ** 2).mean((0, 2, 3)))
        assert found[name] == pytest.approx(rms.tolist(), abs=1e-6)
    frozen = network.latent_path(demo, np.repeat(clip.frames[:1], 4, axis=0))
    assert max(map(max, frozen.values())) < 1e-5


def test_checks_tell_the_source_from_the_edit(demo, clip):
    case = Case(clip.frames, clip.source, references={0: clip.frames[0]})
    run = Run("ddim", 2, 2)
    rows, curves = network.checks(demo, case, run)
    found = named(rows)
    for name, shown in (("edit", clip.frames), ("source", clip.source)):
        match = network.feature_match(demo, shown, shown[0], run)
        assert found[f"feature_match_{name}"].value == pytest.approx(match)
        for curve, values in network.latent_path(demo, shown).items():
            assert curves[curve][name] == pytest.approx(values)
            (score,) = [s for s in rows if s.name.startswith(f"distance_{name}[{curve}")]
            assert score.value == pytest.approx(np.mean(values[1:]))
    (trip, _) = network.frame_round_trip(demo, clip.frames[0], 4, run)
    assert found["psnr_round_trip_frame"] == trip


def test_clips_that_the_weights_do_not_take_have_reasons(demo):
    clip = np.zeros((3, 30, 34, 3), np.uint8)
    rows, curves = network.checks(demo, Case(clip, clip), Run())
    assert not curves and all(s.value is None and "34x30" in s.reason for s in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["consisti2v", "seine", "toy"])
def test_every_backbone_has_all_of_them(name, request, tmp_path, monkeypatch):
    if name == "toy":
        monkeypatch.setitem(anyv2v.backbones.registry.BACKBONES, "toy", Toy)
        folder.write(tmp_path / "toy")
        editor = anyv2v.load(tmp_path / "toy", device="cpu", graphs=False)
    else:
        editor = request.getfixturevalue(name)
    (width, height), count = ((36, 24), 9) if name == "toy" else ((64, 64), 4)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (2, count, height // 4, width // 4, 3), np.uint8)
    source, edited = np.kron(cells, np.ones((1, 1, 4, 4, 1), np.uint8))
    run, case = Run("fixed-point", 2, 2), Case(edited, source)
    rows, curves = network.checks(editor, case, run)
    rows += network.round_trip(editor, anyv2v.Video(source, 8), run)
    assert len(rows) == 10 and all(s.value is not None for s in rows), rows
    latents = editor.backbone.codec.shape(count, height, width)[1]
    assert all(len(values) == latents for lines in curves.values() for values in lines.values())
    assert {name: set(lines) for name, lines in curves.items()} == dict.fromkeys(
        network.CURVES, {"edit", "source"}
    )
