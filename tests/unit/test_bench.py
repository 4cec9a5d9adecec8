"""The benchmarks, small: what is wrong has no speed, and the parts of inversion and savings."""

import csv
import importlib
import json
import math
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.clip.text import TextConfig
from anyv2v.clip.vision import VisionConfig
from anyv2v.diffusion.inversion import InversionState, fixed_point
from anyv2v.diffusion.schedule import TableSchedule, match_levels
from anyv2v.kernels import attention
from anyv2v.vae.autoencoder import AutoencoderConfig
from bench import __main__ as command
from bench import (
    core,
    edit,
    epsilon,
    flow_inversion,
    inversion,
    kernels,
    scaling,
    subjects,
    truth,
    unet,
)
from bench import counted as costs
from bench.core import Bench, Contender
from tests.oracles import snapshot

SCHEDULE = schedule()
STEPS = 50
LEVELS = SCHEDULE.levels(STEPS)[:-1]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Runs `python -m bench` on sizes that take a second; gives exit status and rows by subject."""
    tiny = UNetConfig(4, (16, 32), (True, False), 1, 8, 32, 8)
    monkeypatch.setattr(unet, "SMALL", (tiny, 2, 4))
    monkeypatch.setattr(command, "Bench", partial(Bench, least=1))
    monkeypatch.setattr(kernels, "ON_CPU", (2, ((4, 64), (2, 64), (2, 64), (2, 64))))
    monkeypatch.setattr(Bench, "measure_rates", lambda bench: (1e9, 1e9))

    def run(*arguments):
        given = ["--device", "cpu", "--threads", "1", "--seconds", "0", "--out", str(tmp_path)]
        status = command.main([*arguments, *given])
        path = tmp_path / "cpu-small.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return status, {name: result["rows"] for name, result in found.items()}

    return run


def spoil(monkeypatch, kernel):
    """Makes every implementation of a kernel but its definition wrong by a thousandth."""
    door = importlib.import_module(f"anyv2v.kernels.{kernel}")
    table = tuple(
        i
        if i.name == "reference"
        else replace(i, run=lambda *args, i=i, **options: i.run(*args, **options) * 1.001)
        for i in door.TABLE
    )
    monkeypatch.setattr(door, "TABLE", table)


def test_what_is_right_is_timed_beside_its_peers(small):
    status, rows = small("unet", "kernels")
    assert status == 0
    timed = {row["implementation"] for row in rows["unet"] if row["status"] == "measured"}
    assert {"anyv2v", "diffusers", "diffusers, channels-last", "without the source"} <= timed
    for row in rows["unet"]:
        if row["status"] == "measured":
            assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"] and row["tflop"] > 0
            assert row["of_matrix_rate"] == pytest.approx(
                row["tflop"] * 1e3 / row["median_s"], 1e-2
            )
    (skipped,) = [row for row in rows["unet"] if row["status"] == "skipped"]
    assert "compile" in skipped["implementation"] and "--compile" in skipped["reason"]
    assert {row["case"].split()[0] for row in rows["kernels"]} >= {"attention", "linear", "geglu"}


@pytest.mark.parametrize("kernel", ["linear", "attention"])
def test_a_wrong_kernel_has_no_speed(monkeypatch, small, capsys, kernel):
    spoil(monkeypatch, kernel)
    status, rows = small("unet", "edit", "scaling", "inversion")
    told = capsys.readouterr()
    assert status == 1 and "FAULT" in told.err
    assert [row for of in rows.values() for row in of if row["status"] != "skipped"] == []
    assert " ms (" not in told.out and " s (" not in told.out


def test_a_wrong_kernel_is_not_timed_beside_its_peers(monkeypatch, small):
    spoil(monkeypatch, "linear")
    status, rows = small("kernels")
    assert status == 1
    assert not [row for row in rows["kernels"] if row["case"].startswith("linear")]
    assert [row for row in rows["kernels"] if row["case"].startswith("attention")]


@pytest.mark.parametrize("method", ["step", "timesteps"])
def test_a_wrong_schedule_has_no_speed(monkeypatch, small, method):
    right = getattr(TableSchedule, method)

    def wrong(*args):
        found = right(*args)
        return found[::-1] if method == "timesteps" else found * 0.999

    monkeypatch.setattr(TableSchedule, method, wrong)
    status, rows = small("edit", "scaling", "inversion")
    assert (status, rows) == (1, {})


@pytest.fixture
def bench():
    return Bench("cpu", False, 0.0, torch.float32, matrix_rate=1e9, copy_rate=1e9)


@pytest.mark.parametrize("long", [False, True])
def test_one_wrong_contender_of_ours_leaves_its_case_without_rows(bench, long):
    contenders = [Contender("a", lambda: 1.0), Contender("b", lambda: 2.0)]
    bench.case("one", contenders, lambda name, out: abs(out - 1), 0.1, long=long)
    assert bench.rows == [] and "b is WRONG" in bench.faults[0]


def test_a_result_that_becomes_wrong_later_has_no_speed(bench):
    results = iter([1.0, 1.0, 2.0])
    contenders = [Contender("a", lambda: next(results))]
    bench.case("one", contenders, lambda name, out: abs(out - 1), 0.1, least=3, long=True)
    assert bench.rows == [] and bench.faults


def test_not_a_number_is_wrong(bench):
    bench.case("one", [Contender("a", lambda: 1.0)], lambda name, out: float("nan"), 1.0)
    assert bench.rows == [] and bench.faults


def test_what_fails_is_named_and_the_rest_runs(bench):
    def fails():
        raise RuntimeError("no such\nluck")

    contenders = [
        Contender("peer", fails, peer=True),
        Contender("broken", fails),
        Contender("a", lambda: 1.0, evaluations=lambda: 7, flops=lambda: 10**9),
    ]
    bench.case("one", contenders, lambda name, out: 0.0, 0.1)
    skipped, timed = bench.rows
    assert skipped["status"] == "skipped" and "no such" in skipped["reason"]
    assert timed["implementation"] == "a" and timed["evaluations"] == 7
    assert timed["tflop"] == 1e-3
    assert len(bench.faults) == 1 and "broken failed: RuntimeError: no such" in bench.faults[0]


def test_contenders_are_timed_in_turns(bench):
    order = []
    contenders = [Contender(name, lambda name=name: order.append(name)) for name in "abc"]
    bench.case("one", contenders, lambda name, out: 0.0, 0.1, least=4)
    assert order[-12:] == [*"cba", *"abc"] * 2 and {row["rounds"] for row in bench.rows} == {4}


def test_after_the_last_minute_no_case_begins(bench):
    late = replace(bench, deadline=0.0, rows=[])
    late.case("one", [Contender("a", lambda: 1 / 0)], None, None)
    assert [row["status"] for row in late.rows] == ["skipped"]


def test_a_subject_that_runs_again_replaces_its_rows_alone(tmp_path):
    about = {"device": "d", "commit": "c", "date": "2026-01-01"}
    first = [{"case": "x", "implementation": "a", "status": "measured", "facts": {"n": 1, "m": 2}}]
    core.save(tmp_path, "cpu-small", "unet", about, first)
    core.save(tmp_path, "cpu-small", "edit", about, first * 2)
    path = core.save(tmp_path, "cpu-small", "edit", about | {"date": "2026-01-02"}, first)
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["subject"], row["date"]) for row in rows] == [
        ("unet", "2026-01-01"),
        ("edit", "2026-01-02"),
    ]
    assert rows[0]["facts"] == "n=1; m=2" and list(rows[0]) == core.COLUMNS


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bent(level, x):
    """A prediction that is not linear in the latents and depends on the timestep."""
    return 0.6 * torch.tanh(x) - 0.3 * math.cos(level.t / 300) * x


def residuals(state):
    """timestep -> by how much of itself sampling misses the latents below."""
    found, below = {}, state.clean
    for level in LEVELS[::-1]:
        x = state.trajectory[level.index]
        down = SCHEDULE.step(bent(level, x), level.t, x, STEPS)
        found[level.t], below = ((down - below).norm() / below.norm()).item(), x
    return found


def test_solving_undoes_the_step():
    below, v = draw(1, 4, 3, 5, 6), draw(1, 4, 3, 5, 6, seed=1)
    levels = SCHEDULE.levels(STEPS)
    for i, t in ((49, 1), (24, 501), (0, 981)):
        x = inversion.solved(SCHEDULE, v, *levels[i : i + 2], below)
        assert torch.allclose(SCHEDULE.step(v, t, x, STEPS), below, atol=1e-5)


@pytest.mark.parametrize(("name", "above"), [("plain", 0), ("renoise", 250)])
def test_more_evaluations_come_nearer_to_the_solution(name, above):
    """Of averaged predictions only the last two count above t = 250, below it all do."""
    worst = []
    for evaluations in (1, 3):
        begin = InversionState.start(draw(1, 4, 3, 5, 6))
        *_, last = getattr(inversion, name)(bent, begin, SCHEDULE, STEPS, evaluations)
        assert last.evaluations == evaluations * STEPS and last.latest == 0
        worst.append(max(r for t, r in residuals(last).items() if t > above))
    assert worst[0] > 9 * worst[1]


def test_plain_iteration_once_is_not_what_ddim_inversion_steps_with():
    """It solves the step of sampling for its v, where DDIM turns the latents the other way."""
    clean = draw(1, 4, 3, 5, 6)
    *_, last = inversion.plain(
        lambda level, x: 0 * x, InversionState.start(clean), SCHEDULE, STEPS, 1
    )
    # with v = 0 the level's whole growth is undone exactly
    *_, exact = fixed_point(lambda level, x: 0 * x, InversionState.start(clean), SCHEDULE, STEPS)
    assert torch.allclose(last.trajectory[0], exact.trajectory[0], rtol=1e-4)


def test_videoshop_asks_on_the_line_from_the_clean_latents():
    asked, clean = {}, draw(1, 4, 3, 5, 6)

    def predict(level, x):
        asked[level.t] = x
        return bent(level, x)

    *_, last = inversion.videoshop(predict, InversionState.start(clean), SCHEDULE, STEPS)
    assert len(asked) == last.evaluations == STEPS

    def sigma(t):
        level = SCHEDULE.alpha_bar(t)
        return math.sqrt((1 - level) / level)

    for s, t in ((701, 721), (941, 961)):
        assert sigma(s) > 1
        below = last.trajectory[SCHEDULE.timesteps(STEPS).index(s)]
        ends = [x / math.sqrt(SCHEDULE.alpha_bar(u)) for u, x in ((s, below), (t, asked[t]))]
        slopes = [(x - clean) / sigma(u) for u, x in zip((s, t), ends, strict=True)]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4)


def test_linear_is_the_fixed_point_with_one_evaluation_a_step():
    (method,) = (m for m in inversion.METHODS if m.name == "linear")
    *_, last = method.run(bent, InversionState.start(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps)
    assert last.evaluations == STEPS


def test_every_method_keeps_the_timesteps_of_sampling():
    for method in inversion.METHODS:
        *_, last = method.run(
            bent, InversionState.start(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps
        )
        levels = SCHEDULE.levels(method.steps)
        read = match_levels(LEVELS, levels[:-1])
        assert len(read) == STEPS and set(read.values()) <= last.trajectory.keys(), method.name


def test_the_check_passes_the_product_and_finds_a_wrong_residual(editor, video):
    short = anyv2v.Video(video.frames[:3], 8)
    assert inversion.check(editor, short, steps=2) == []

    class Boasting:
        """An editor that reports half of its residuals and all but one evaluation."""

        def __getattr__(self, name):
            return getattr(editor, name)

        def invert(self, *args):
            source = editor.invert(*args)
            less = {i: r / 2 for i, r in source.residuals.items()}
            return anyv2v.Source(
                source.video,
                source.trajectory,
                source.evaluations - 1,
                source.settings,
                source.fingerprint,
                less,
            )

    faults = inversion.check(Boasting(), short, steps=2)
    assert any("residual" in fault for fault in faults)
    assert any("evaluations" in fault for fault in faults)


def test_intervals_hold_their_means():
    mean, low, high = inversion.geometric([1e-4, 1e-3, 1e-2])
    assert mean == pytest.approx(1e-3) and 1e-4 < low * 1.01 < mean < high < 1.01e-2
    assert math.isnan(inversion.interval([None])[0])


@pytest.fixture(scope="module")
def counted(editor):
    # without fake tensors: the model is so small that to run it is faster
    return costs.Counted(editor, torch.device("cpu"), frames=3, size=64)


def test_nothing_saved_is_three_whole_branches_in_every_step(counted):
    one = counted.forward([0]) + counted.conditions_each_time
    plain = counted.batched(costs.NOTHING)
    assert plain == pytest.approx(3 * STEPS * one, rel=1e-3)


@pytest.mark.slow
def test_every_saving_saves_and_none_twice(counted):
    every, nothing, flags = costs.Savings(), costs.NOTHING, costs.WORDS
    assert set(flags) == {f.name for f in fields(every)}
    plain, least = counted.batched(nothing), counted.batched(every)
    alone = 0
    for name in flags:
        saved = plain - counted.batched(costs.Savings(**{f: f == name for f in flags}))
        assert saved > 0, name
        alone += saved
    assert least < plain and plain - least <= alone
    assert max(counted.replayed(True), counted.replayed(False)) < least


def test_sharing_with_its_savings_left_out_gives_the_same(editor, edited_frame):
    told = [editor.condition("a", edited_frame, 3, (64, 64), negative=n) for n in (False, True)]
    told = type(told[0]).stack([*told, told[0]])
    latents, sites = draw(3, 4, 3, 8, 8), frozenset().union(*editor.backbone.groups.values())
    results = [
        editor.predict(latents, 501, told, costs.Sharing(sites, 3, chosen))[-2:]
        for chosen in (costs.NOTHING, costs.Savings())
    ]
    assert (results[0] - results[1]).norm() <= 1e-5 * results[0].norm()


def test_the_published_size_has_the_originals_sites():
    editor = costs.published_size()
    plan = editor.step_plan(STEPS)
    assert [len(step.sites) for step in plan.steps] == [17] * 10 + [8] * 15 + [0] * 25


@pytest.mark.slow
def test_an_edit_at_the_published_size_takes_no_more_than_it_did():
    """Operations and peak memory with the source in the batch, as they once were; 0.5 % more."""
    plan = edit.planned(costs.SIZE, costs.FRAMES, feature_memory=0)
    assert plan.total <= 1.005 * 4117.31e12
    assert plan.peak <= 1.005 * 8.2772e9


def test_enlarged_pictures_are_those_of_the_demo_pixel_by_pixel():
    small = subjects.Job.rendered((32, 32), 2)
    large = subjects.Job.enlarged((96, 64), 2)
    assert large.video.frames.shape == (2, 64, 96, 3) and large.frame.shape == (64, 96, 3)
    assert np.array_equal(large.video.frames[:, ::2, ::3], small.video.frames)
    assert np.array_equal(large.video.frames[:, 1::2, 2::3], small.video.frames)


@pytest.mark.parametrize("causal", [False, True])
def test_the_definition_in_parts_is_the_definition(monkeypatch, causal):
    q, k = draw(5, 7, 2, 8), draw(5, 7, 2, 8, seed=1)
    v = draw(15, 7, 2, 8, seed=2)
    whole = attention.attention(q, k, v, causal=causal, impl="reference")
    monkeypatch.setattr(truth, "MOST_SCORES", 2 * 7 * 7 * 2)
    with truth.use_definitions():
        parts = attention.attention(q, k, v, causal=causal)
    assert torch.allclose(parts, whole, rtol=1e-6, atol=1e-6)


def tiny_as_published(monkeypatch):
    """The published model's stand-in, as many layers and next to no width."""
    monkeypatch.setattr(costs, "UNET", UNetConfig(4, (8, 16), (True, False), 1, 8, 16, 4))
    monkeypatch.setattr(costs, "VAE", AutoencoderConfig(3, 4, (8, 8), 1, 4, 0.2))
    monkeypatch.setattr(costs, "TEXT", TextConfig(9, 77, 16, 2, 1, 16, "gelu", 1e-5))
    monkeypatch.setattr(costs, "VISION", VisionConfig(28, 14, 16, 2, 1, 16, "gelu", 1e-5, 16))


def test_random_weights_lie_as_loaded_ones_do_and_stay_finite(monkeypatch):
    tiny_as_published(monkeypatch)
    editor = subjects.published("cpu")
    for network in (editor.backbone.codec.vae, editor.backbone.unet, editor.backbone.vision):
        for name, x in network.named_parameters():
            assert x.isfinite().all(), name
            assert x.ndim != 4 or x.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.slow
@pytest.mark.parametrize("subject", command.SUBJECTS)
def test_nothing_of_a_full_set_fails(monkeypatch, small, capsys, subject):
    """Every set-up of it, on tiny sizes and in one round."""
    case, load = Bench.case, anyv2v.load
    few = {"least": 1}
    monkeypatch.setattr(Bench, "case", lambda *a, **options: case(*a, **options | few))

    def tiny(*args, **options):
        editor = load(*args, **options)
        if args[0] != "demo":
            return editor
        defaults = replace(editor.defaults, size=(16, 16), frames=2)
        return anyv2v.Editor(replace(editor.backbone, defaults=defaults), editor.fingerprint)

    monkeypatch.setattr(anyv2v, "load", tiny)
    tiny_as_published(monkeypatch)
    monkeypatch.setattr(unet, "FULL", unet.SMALL)
    monkeypatch.setattr(edit, "STEPS", 10)
    monkeypatch.setattr(edit, "INVERSION", 20)
    monkeypatch.setattr(edit, "WORDS", dict([*edit.WORDS.items()][:1]))
    base = scaling.Point(16, 2)
    monkeypatch.setattr(scaling, "DEMO_FULL", scaling.points(base, (16,), (2,), (2,)))
    monkeypatch.setattr(scaling, "PUBLISHED", [base])
    monkeypatch.setitem(snapshot.PRESETS, "full", snapshot.PRESETS["tiny"])
    monkeypatch.setattr(epsilon, "DDIM", 20)
    monkeypatch.setattr(epsilon, "STEPS", (5,))
    monkeypatch.setattr(flow_inversion, "FIELDS", 1)
    monkeypatch.setattr(flow_inversion, "OFF", dict([*flow_inversion.OFF.items()][:1]))
    some = {"euler 50": flow_inversion.euler(50), "uni-inv": flow_inversion.uni_inv}
    monkeypatch.setattr(flow_inversion, "METHODS", some)
    monkeypatch.setattr(inversion, "CLIPS", 1)
    monkeypatch.setattr(inversion, "STEPS", 5)
    methods = tuple(replace(m, steps=m.steps // 10) for m in inversion.METHODS)
    monkeypatch.setattr(inversion, "METHODS", methods)

    status, _ = small(subject, "--set", "full")
    told = capsys.readouterr()
    assert status == 0, told.err


def test_rows_are_on_disk_before_their_subject_ends(monkeypatch, small, tmp_path):
    seen = []

    def run(bench):
        bench.skip("a case", "somebody", "no reason")
        seen.append(json.loads((tmp_path / "cpu-small.json").read_text())["kernels"]["rows"])
        raise ValueError("the end")

    monkeypatch.setattr(kernels, "run", run)
    status, rows = small("kernels")
    assert status == 1 and seen == [rows["kernels"]] and len(rows["kernels"]) == 1
