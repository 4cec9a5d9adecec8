"""The benchmarks, small: what is wrong has no speed, and the parts of inversion and savings."""

import csv
import importlib
import json
import math
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

import anyv2v
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.diffusion.inversion import Inverted, fixed_point
from anyv2v.diffusion.schedule import Schedule
from bench import __main__ as command
from bench import core, inversion, kernels, unet
from bench import counted as costs
from bench.core import Bench, Contender

SCHEDULE = Schedule()
STEPS = 50


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
    right = getattr(Schedule, method)

    def wrong(*args):
        found = right(*args)
        return found[::-1] if method == "timesteps" else found * 0.999

    monkeypatch.setattr(Schedule, method, wrong)
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


def bent(i, t, x):
    """A prediction that is not linear in the latents and depends on the timestep."""
    return 0.6 * torch.tanh(x) - 0.3 * math.cos(t / 300) * x


def residuals(kept):
    """timestep -> by how much of itself sampling misses the latents below."""
    found = {}
    order = [0, *reversed(SCHEDULE.timesteps(STEPS))]
    for s, t in zip(order, order[1:], strict=False):
        down = SCHEDULE.step(bent(0, t, kept[t]), t, kept[t], STEPS)
        found[t] = ((down - kept[s]).norm() / kept[s].norm()).item()
    return found


def test_solving_undoes_the_step():
    below, v = draw(1, 4, 3, 5, 6), draw(1, 4, 3, 5, 6, seed=1)
    for t in (1, 501, 981):
        x = inversion.solved(SCHEDULE, v, t, below, STEPS)
        assert torch.allclose(SCHEDULE.step(v, t, x, STEPS), below, atol=1e-5)


@pytest.mark.parametrize(("name", "above"), [("plain", 0), ("renoise", 250)])
def test_more_evaluations_come_nearer_to_the_solution(name, above):
    """Of averaged predictions only the last two count above t = 250, below it all do."""
    worst = []
    for evaluations in (1, 3):
        begin = Inverted.of(draw(1, 4, 3, 5, 6))
        *_, last = getattr(inversion, name)(bent, begin, SCHEDULE, STEPS, evaluations)
        assert last.evaluations == evaluations * STEPS and last.latest == 981
        worst.append(max(r for t, r in residuals(last.kept).items() if t > above))
    assert worst[0] > 9 * worst[1]


def test_plain_iteration_once_is_not_what_ddim_inversion_steps_with():
    """It solves the step of sampling for its v, where DDIM turns the latents the other way."""
    clean = draw(1, 4, 3, 5, 6)
    *_, last = inversion.plain(lambda i, t, x: 0 * x, Inverted.of(clean), SCHEDULE, STEPS, 1)
    # with v = 0 the level's whole growth is undone exactly
    *_, exact = fixed_point(lambda i, t, x: 0 * x, Inverted.of(clean), SCHEDULE, STEPS)
    assert torch.allclose(last.kept[981], exact.kept[981], rtol=1e-4)


def test_videoshop_asks_on_the_line_from_the_clean_latents():
    asked, clean = {}, draw(1, 4, 3, 5, 6)

    def predict(i, t, x):
        asked[t] = x
        return bent(i, t, x)

    *_, last = inversion.videoshop(predict, Inverted.of(clean), SCHEDULE, STEPS)
    assert len(asked) == last.evaluations == STEPS

    def sigma(t):
        level = SCHEDULE.alpha_bar(t)
        return math.sqrt((1 - level) / level)

    for s, t in ((701, 721), (941, 961)):
        assert sigma(s) > 1
        ends = [x / math.sqrt(SCHEDULE.alpha_bar(u)) for u, x in ((s, last.kept[s]), (t, asked[t]))]
        slopes = [(x - clean) / sigma(u) for u, x in zip((s, t), ends, strict=True)]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4)


def test_linear_is_the_fixed_point_with_one_evaluation_a_step():
    (method,) = (m for m in inversion.METHODS if m.name == "linear")
    *_, last = method.run(bent, Inverted.of(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps)
    assert last.evaluations == STEPS


def test_every_method_keeps_the_timesteps_of_sampling():
    for method in inversion.METHODS:
        *_, last = method.run(bent, Inverted.of(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps)
        assert set(SCHEDULE.timesteps(STEPS)) <= last.kept.keys(), method.name


def test_the_check_passes_the_product_and_finds_a_wrong_residual(editor, video):
    short = anyv2v.Video(video.frames[:3], 8)
    assert inversion.check(editor, short, steps=2) == []

    class Boasting:
        """An editor that reports half of its residuals and all but one evaluation."""

        def __getattr__(self, name):
            return getattr(editor, name)

        def invert(self, *args):
            source = editor.invert(*args)
            less = {t: r / 2 for t, r in source.residuals.items()}
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
    # without fakes: the model is so small that to run it is faster
    return costs.Counted(editor, torch.device("cpu"), frames=3, size=64)


def test_nothing_saved_is_three_whole_branches_in_every_step(counted):
    one = counted.forward([0]) + counted.told_each_time
    plain = counted.riding(costs.NOTHING)
    assert plain == pytest.approx(3 * STEPS * one, rel=1e-3)


def test_every_saving_saves_and_none_twice(counted):
    every, nothing, flags = costs.Savings(), costs.NOTHING, costs.WORDS
    assert set(flags) == {f.name for f in fields(every)}
    plain, least = counted.riding(nothing), counted.riding(every)
    alone = 0
    for name in flags:
        saved = plain - counted.riding(costs.Savings(**{f: f == name for f in flags}))
        assert saved > 0, name
        alone += saved
    assert least < plain and plain - least <= alone
    assert max(counted.replaying(True), counted.replaying(False)) < least


def test_sharing_with_its_savings_left_out_gives_the_same(editor, edited_frame):
    told = [editor.condition("a", edited_frame, 3, (64, 64), negative=n) for n in (False, True)]
    told = type(told[0]).stack([*told, told[0]])
    latents, sites = draw(3, 4, 3, 8, 8), frozenset().union(*editor.backbone.groups.values())
    last = max(sites, key=editor.backbone.sites.index)
    results = [
        editor.predict(latents, 501, told, costs.Sharing(sites, 3, last, chosen))[-2:]
        for chosen in (costs.NOTHING, costs.Savings())
    ]
    assert (results[0] - results[1]).norm() <= 1e-5 * results[0].norm()


def test_the_published_size_has_the_originals_sites():
    editor = costs.published_size()
    plan = editor.plan(STEPS, 0, anyv2v.Injection())
    assert [len(sites) for sites in plan.values()] == [17] * 10 + [8] * 15 + [0] * 25
