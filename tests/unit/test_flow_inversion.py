"""Inversion of flows, whose cleanest steps cannot be solved: on exact fields, and by the editor."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import Injection, InputError
from anyv2v.backbones.defaults import read_defaults
from anyv2v.backbones.registry import BACKBONES
from anyv2v.backbones.wan.defaults import PUBLISHED_SETTINGS
from anyv2v.cli.main import main
from anyv2v.diffusion.inversion import InversionState, fixed_point
from anyv2v.pipeline import source as source_module
from anyv2v.pipeline.source import Source, Unfinished
from bench import flow_inversion
from bench.flow_inversion import METHODS, OFF, SCHEDULE, Field, noise_norm
from tests.oracles.golden import relative_error
from tests.toy import folder
from tests.toy.backbone import Toy
from tests.toy.schedule import Flow

STEPS = 10
SOLVED_FROM = 0.5  # of the toy's ten steps the two to sigma 0.47 and to 0 are not solved
DRAWN = (9, 8)
FEATURES = Injection(map=1.0, hidden=1.0, cross=1.0)


# on fields whose velocity is known


@cache
def made(case, name):
    """Evaluations, error of the round trip, and norm of the noise."""
    field = Field(0, *OFF[case])
    found = METHODS[name](field)
    return found.evaluations, found.error, noise_norm(field, found.noisiest)


def test_the_field_is_right_and_what_is_reported_can_be_recomputed():
    assert flow_inversion.check(Field(0, *OFF["0.2"])) == []


@pytest.mark.parametrize("case", OFF)
def test_the_default_comes_back_from_noise_of_the_right_norm(case):
    evaluations, error, norm = made(case, "fixed-point (default)")
    assert evaluations <= 60 and error <= 1e-3 and 0.95 <= norm <= 1.2
    low, high = PUBLISHED_SETTINGS["noise_range"]
    assert low < norm < high


@pytest.mark.parametrize("case", OFF)
def test_the_default_comes_nearer_than_methods_of_as_many_evaluations(case):
    error = made(case, "fixed-point (default)")[1]
    for other, least in (("euler 50", 50), ("rf-solver 25", 5), ("fireflow", 2), ("uni-inv", 20)):
        evaluations, missed, _ = made(case, other)
        assert evaluations <= 51 and missed > least * error


def test_the_methods_come_in_the_order_that_the_mathematics_predicts():
    known, unknown, noisy = OFF
    order = "fixed-point (default)", "fixed-point, all steps", "rf-solver 25", "uni-inv", "euler 50"
    errors = [made(known, name)[1] for name in order]
    assert errors == sorted(errors)
    assert made(known, "rf-solver 50")[1] < errors[2] / 4  # of second order
    # where the field takes most directions for noise, solving the last steps leaves its clips
    for case, largest in ((unknown, 2), (noisy, 4)):
        _, error, norm = made(case, "fixed-point, all steps")
        assert error > 4 * made(case, "euler 50")[1] and norm > largest
    for case in OFF:
        _, error, norm = made(case, "fixed-point above euler")
        assert error < 1e-3 and norm > made(case, "fixed-point (default)")[2] + 0.05
    # such noise is what the range of norms refuses
    high = PUBLISHED_SETTINGS["noise_range"][1]
    assert min(made(noisy, x)[2] for x in ("euler 50", "fixed-point above euler")) > high
    assert made(known, "fixed-point, all steps")[2] > 1.15


@pytest.mark.parametrize(
    ("steps", "drawn"), [(1, 1), (2, 1), (10, 1), (25, 1), (50, 2), (100, 4), (250, 10)]
)
def test_noise_is_drawn_for_the_steps_below_the_level_where_solving_begins(steps, drawn):
    clean, noise = (torch.randn(1, 2, 3, 4, 4, generator=seeded(i)) for i in range(2))
    solved_from = PUBLISHED_SETTINGS["solved_from"]
    asked = []

    def predict(level, x):
        asked.append(level.index)
        return x - clean

    *_, last = fixed_point(
        predict, InversionState.start(clean), SCHEDULE, steps, noise=noise, solved_from=solved_from
    )
    levels = SCHEDULE.levels(steps)
    below = [*range(steps - 1, steps - 1 - drawn, -1)]
    assert [*last.offsets] == below == asked[:drawn] and asked.count(below[-1]) == 1
    assert all(levels[i].sigma >= solved_from for i in range(below[-1] + 1))
    for i in below:
        x = levels[i].alpha * clean + levels[i].sigma * noise
        assert torch.equal(last.trajectory[i], x)
        missed = last.trajectory.get(i + 1, clean) - x
        missed = missed + (levels[i].sigma - levels[i + 1].sigma) * (x - clean)
        assert (last.offsets[i] - missed).abs().max() < 1e-5
    assert len(last.trajectory) == len(last.residuals) == steps


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_where_all_steps_are_solved_noise_changes_nothing():
    field = Field(0, *OFF["0.2"])
    runs = [
        [*fixed_point(field, InversionState.start(field.clean), SCHEDULE, STEPS, **noise)][-1]
        for noise in ({}, {"noise": field.noise, "solved_from": 0.0})
    ]
    assert runs[1].offsets == {} and runs[0].evaluations == runs[1].evaluations
    for i in range(STEPS):
        assert torch.equal(runs[0].trajectory[i], runs[1].trajectory[i])


@pytest.mark.parametrize("done", [1, 2, 3, 17])
def test_an_inversion_goes_on_where_it_was(done):
    field = Field(0, *OFF["0.2"])
    run = {"noise": field.noise, "solved_from": 0.4}
    states = [*fixed_point(field, InversionState.start(field.clean), SCHEDULE, 20, **run)]
    *_, last = fixed_point(field, states[done - 1], SCHEDULE, 20, **run)
    assert last.evaluations == states[-1].evaluations
    assert [*last.offsets] == [*states[-1].offsets] == [19, 18, 17]
    for i, x in last.trajectory.items():
        assert torch.equal(x, states[-1].trajectory[i])


# by the editor, with a toy


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", Toy)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy"
    folder.write(path, solved_from=SOLVED_FROM, steps=STEPS)
    return path


@pytest.fixture(scope="module")
def editor(weights):
    return anyv2v.load(weights, device="cpu", graphs=False)


@pytest.fixture(scope="module")
def video():
    return anyv2v.Video(np.random.default_rng(0).integers(0, 256, (9, 24, 36, 3), np.uint8), 12)


@pytest.fixture(scope="module")
def source(editor, video):
    return editor.invert(video, round_trip=True)


def test_only_frames_that_are_noised_get_noise(source):
    clean, levels = source.trajectory.clean, source.trajectory.levels
    assert tuple(source.offsets) == DRAWN
    for i in range(STEPS):
        assert torch.equal(source.at(i)[:, :, :1], clean[:, :, :1])
    noise = torch.stack([(source.at(i) - levels[i].alpha * clean) / levels[i].sigma for i in DRAWN])
    # the same at both levels, and normal, in the other frames
    assert relative_error(noise[0, :, :, 1:], noise[1, :, :, 1:]) < 1e-5
    assert noise[0, :, :, 1:].std().item() == pytest.approx(1, abs=0.1)
    assert all(
        (x[:, :, :1] == 0).all() and (x[:, :, 1:] != 0).any() for x in source.offsets.values()
    )
    x, level = source.at(0), levels[0]
    noise = ((x - level.alpha * clean) / level.sigma)[:, :, 1:]
    assert source.noise_norm == pytest.approx(noise.square().mean().sqrt().item(), rel=1e-6)


def test_what_the_noise_covers_comes_back_by_the_offsets(editor, source):
    clean = source.trajectory.clean
    for start in (0, 5, 8, 9):
        again = editor.reconstruct(source, start=start)
        error = relative_error(again.latents, clean)
        assert error < 5e-3
        if start == 0:
            assert source.round_trip == pytest.approx(
                relative_error(again.latents[:, :, 1:], clean[:, :, 1:]), rel=1e-3
            )
    without = editor.reconstruct(replace(source, offsets={})).latents
    assert relative_error(without, clean) > 0.05


def test_offsets_belong_to_the_steps_of_the_inversion_alone(tmp_path, video):
    folder.write(tmp_path / "toy", solved_from=0.95)
    editor = anyv2v.load(tmp_path / "toy", device="cpu")
    source = editor.invert(video, steps=2)
    assert [*source.offsets] == [1, 0]
    once = editor.reconstruct(source, steps=1).latents
    without = editor.reconstruct(replace(source, offsets={}), steps=1).latents
    assert torch.equal(once, without)
    assert (
        relative_error(editor.reconstruct(source, steps=2).latents, source.trajectory.clean) < 1e-5
    )


def test_features_are_recorded_for_free_where_noise_was_drawn(editor, video, source):
    recording = editor.recording(video, FEATURES)
    free = editor.invert(video, recording=recording)
    assert free.evaluations == source.evaluations
    paid = editor.record(source, recording)
    assert set(free.features.by_step) == set(range(STEPS))
    for i in range(STEPS):
        for site, parts in paid.features.by_step[i].items():
            for x, y in zip(parts, free.features.by_step[i][site], strict=True):
                assert torch.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("start", DRAWN)
def test_an_inversion_may_end_below_the_steps_that_are_solved(editor, video, source, start):
    plan = editor.step_plan(start=start, injection=Injection.none())
    short = editor.invert(video, plan=plan, round_trip=True)
    assert [*short.trajectory.latents] == [start]
    assert torch.equal(short.at(start), source.at(start))
    assert short.evaluations == STEPS - start and short.round_trip < 1e-5
    assert "solved from sigma" in short.figures


def test_a_round_trip_tells_its_steps_and_changes_nothing_else(editor, video, source):
    seen = []
    again = editor.invert(
        video, round_trip=True, on_step=lambda *x: seen.append((x[0], tuple(x[2].shape)))
    )
    whole = tuple(source.trajectory.clean.shape)
    assert seen == 2 * [(i, whole) for i in range(STEPS)]
    plain = editor.invert(video)
    assert same(again, plain) and plain.round_trip is None


def test_plain_inversion_draws_nothing(editor, video):
    plain = editor.invert(video, "ddim", STEPS)
    assert plain.offsets == {} and plain.evaluations == STEPS and plain.round_trip is None
    (levels, x) = Flow().levels(STEPS), plain.trajectory.clean[:, :, 1:]
    conditions = editor.condition("", video.frames[0], 9, (36, 24))
    whole = plain.trajectory.clean
    for i in (9, 8):  # Euler's method, told the noisier level
        velocity = editor.predict(whole, levels[i].t, conditions)[:, :, 1:]
        x = x + (levels[i].sigma - levels[i + 1].sigma) * velocity
        assert relative_error(plain.at(i)[:, :, 1:], x) < 1e-6
        whole = plain.at(i)


@pytest.mark.parametrize("done", [1, 2, 5])
def test_an_interrupted_inversion_goes_on_with_the_same_noise(
    editor, video, source, tmp_path, monkeypatch, done
):
    monkeypatch.setattr(source_module, "SAVE_EVERY", 0.0)
    unfinished = Unfinished(tmp_path / "unfinished")
    steps = iter(range(done))

    def stop(*_):
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.invert(video, unfinished=unfinished, on_step=stop)
    asked = []
    resumed = editor.invert(video, unfinished=unfinished, on_step=lambda i, *_: asked.append(i))
    assert asked == [*range(done, STEPS)]
    assert same(resumed, source)


def same(a, b):
    assert a.evaluations == b.evaluations and a.residuals == b.residuals
    assert all(torch.equal(a.at(i), b.at(i)) for i in range(STEPS))
    assert [*a.offsets] == [*b.offsets]
    return all(torch.equal(a.offsets[i], b.offsets[i]) for i in a.offsets)


def test_a_file_keeps_the_figures_of_a_source(editor, source, tmp_path):
    source.save(tmp_path / "a.safetensors")
    again = Source.load(tmp_path / "a.safetensors")
    assert same(again, source) and again.figures == source.figures
    assert again.round_trip == source.round_trip and again.noise_norm == source.noise_norm
    assert f"{source.evaluations} evaluations" in source.figures
    assert "round trip" in source.figures and "from sigma 0.667 on, offset" in source.figures
    # one from before is read, and tells what can be known
    with source_module._opened(tmp_path / "a.safetensors") as file:
        facts = json.loads(file.metadata()["source"])
        tensors = {name: file.get_tensor(name) for name in file.keys() if "offsets" not in name}
    del facts["round_trip"]
    source_module._write(tmp_path / "b.safetensors", facts, tensors)
    old = Source.load(tmp_path / "b.safetensors")
    assert (old.offsets, old.round_trip, old.noise_norm) == ({}, None, source.noise_norm)
    for wrong in ("near", [1], float("inf")):
        source_module._write(tmp_path / "c.safetensors", facts | {"round_trip": wrong}, tensors)
        with pytest.raises(InputError, match="round_trip"):
            Source.load(tmp_path / "c.safetensors")
    for name, x in (("offsets.3", source.offsets[8][..., 1:]), ("offsets.10", source.offsets[8])):
        source_module._write(tmp_path / "c.safetensors", facts, tensors | {name: x})
        with pytest.raises(InputError, match="shapes of the latents differ|no step 10"):
            Source.load(tmp_path / "c.safetensors")
    tensors["offsets.3"] = torch.full_like(source.offsets[8], torch.nan)
    source_module._write(tmp_path / "c.safetensors", facts, tensors)
    with pytest.raises(InputError, match="offset of step 3 are not finite"):
        Source.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"noise_range": [1]}, r"noise_range: \[1\] is not two numbers or null"),
        ({"noise_range": 2}, "noise_range: 2 is not two numbers or null"),
        ({"noise_range": [1, "2"]}, "noise_range: '2' is not a finite number"),
        ({"solved_from": 1.5}, "solved_from: 1.5 is not"),
    ],
)
def test_settings_of_the_weights_that_cannot_be_are_refused(stated, message):
    clip = {"size": [8, 8], "frames": 2, "fps": 4}
    with pytest.raises(InputError, match=message):
        read_defaults({"defaults": clip | stated}, PUBLISHED_SETTINGS)
    own = read_defaults({"defaults": clip}, PUBLISHED_SETTINGS)
    assert (own.solved_from, own.noise_range) == (0.17, (0.9, 1.2))
    none = read_defaults({"defaults": clip | {"noise_range": None}}, PUBLISHED_SETTINGS)
    assert (none.solved_from, none.noise_range) == (0.17, ())


def test_noise_of_an_unknown_norm_fails_and_leaves_no_source(tmp_path, video, monkeypatch, capsys):
    folder.write(tmp_path / "toy", solved_from=SOLVED_FROM, noise_range=[3, 4])
    editor = anyv2v.load(tmp_path / "toy", device="cpu")
    with pytest.raises(InputError, match=r"know 3 to 4, .* Try more steps, .*noise_range"):
        editor.invert(video, steps=4)
    with pytest.raises(InputError, match=r"norm [\d.]+; .* Try the method fixed-point, more steps"):
        editor.invert(video, steps=4, method="ddim")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(video.frames):
        Image.fromarray(frame).save(f"clip/{i}.png")
    args = ["invert", "clip", "-o", "a.safetensors", "--inversion-steps", "4", "--device", "cpu"]
    assert main([*args, "--weights", "toy"]) == 2
    assert "these weights know 3 to 4" in capsys.readouterr().err
    # no source, but what was computed, which the same weights may resume where any norm is allowed
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.safetensors.unfinished"]
    folder.write(tmp_path / "any", solved_from=SOLVED_FROM, noise_range=None)
    with monkeypatch.context() as patch:
        # nothing is computed again
        patch.setattr("tests.toy.backbone.Toy.predict", None)
        assert main([*args, "--weights", "any", "--resume"]) == 0
    resumed = Source.load(tmp_path / "a.safetensors")
    capsys.readouterr()
    assert main([*args, "--weights", "any", "--round-trip", "--force"]) == 0
    again = Source.load(tmp_path / "a.safetensors")
    assert torch.equal(resumed.at(0), again.at(0)) and resumed.residuals == again.residuals
    figures = Source.load(tmp_path / "a.safetensors").figures
    told = capsys.readouterr()
    assert "round trip" in figures and figures in told.out
    assert "8 of 8 steps" in told.err  # there and back
