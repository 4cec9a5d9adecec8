"""The parts of the benchmarks of inversion and of savings, small."""

import math
import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import anyv2v
from anyv2v.diffusion.inversion import Inverted, fixed_point
from anyv2v.diffusion.schedule import Schedule

ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule()
STEPS = 50


@pytest.fixture(scope="module")
def inversion():
    return runpy.run_path(str(ROOT / "bench" / "inversion.py"))


@pytest.fixture(scope="module")
def savings():
    return runpy.run_path(str(ROOT / "bench" / "savings.py"))


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


def test_solving_undoes_the_step(inversion):
    below, v = draw(1, 4, 3, 5, 6), draw(1, 4, 3, 5, 6, seed=1)
    for t in (1, 501, 981):
        x = inversion["solved"](SCHEDULE, v, t, below, STEPS)
        assert torch.allclose(SCHEDULE.step(v, t, x, STEPS), below, atol=1e-5)


@pytest.mark.parametrize(("name", "above"), [("plain", 0), ("renoise", 250)])
def test_more_evaluations_come_nearer_to_the_solution(inversion, name, above):
    """Of averaged predictions only the last two count above t = 250, below it all do."""
    worst = []
    for evaluations in (1, 3):
        begin = Inverted.of(draw(1, 4, 3, 5, 6))
        *_, last = inversion[name](bent, begin, SCHEDULE, STEPS, evaluations)
        assert last.evaluations == evaluations * STEPS and last.latest == 981
        worst.append(max(r for t, r in residuals(last.kept).items() if t > above))
    assert worst[0] > 9 * worst[1]


def test_plain_iteration_once_is_not_what_ddim_inversion_steps_with(inversion):
    """It solves the step of sampling for its v, where DDIM turns the latents the other way."""
    clean = draw(1, 4, 3, 5, 6)
    *_, last = inversion["plain"](lambda i, t, x: 0 * x, Inverted.of(clean), SCHEDULE, STEPS, 1)
    # with v = 0 the level's whole growth is undone exactly
    *_, exact = fixed_point(lambda i, t, x: 0 * x, Inverted.of(clean), SCHEDULE, STEPS)
    assert torch.allclose(last.kept[981], exact.kept[981], rtol=1e-4)


def test_videoshop_asks_on_the_line_from_the_clean_latents(inversion):
    asked, clean = {}, draw(1, 4, 3, 5, 6)

    def predict(i, t, x):
        asked[t] = x
        return bent(i, t, x)

    *_, last = inversion["videoshop"](predict, Inverted.of(clean), SCHEDULE, STEPS)
    assert len(asked) == last.evaluations == STEPS

    def sigma(t):
        level = SCHEDULE.alpha_bar(t)
        return math.sqrt((1 - level) / level)

    for s, t in ((701, 721), (941, 961)):
        assert sigma(s) > 1
        ends = [x / math.sqrt(SCHEDULE.alpha_bar(u)) for u, x in ((s, last.kept[s]), (t, asked[t]))]
        slopes = [(x - clean) / sigma(u) for u, x in zip((s, t), ends, strict=True)]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4)


def test_linear_is_the_fixed_point_with_one_evaluation_a_step(inversion):
    (method,) = (m for m in inversion["METHODS"] if m.name == "linear")
    *_, last = method.run(bent, Inverted.of(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps)
    assert last.evaluations == STEPS


def test_every_method_keeps_the_timesteps_of_sampling(inversion):
    for method in inversion["METHODS"]:
        *_, last = method.run(bent, Inverted.of(draw(1, 4, 3, 5, 6)), SCHEDULE, method.steps)
        assert set(SCHEDULE.timesteps(STEPS)) <= last.kept.keys(), method.name


def test_the_check_passes_the_product_and_finds_a_wrong_residual(inversion, editor, video):
    short = anyv2v.Video(video.frames[:3], 8)
    assert inversion["check"](editor, short, steps=2) == []

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

    faults = inversion["check"](Boasting(), short, steps=2)
    assert any("residual" in fault for fault in faults)
    assert any("evaluations" in fault for fault in faults)


def test_intervals_hold_their_means(inversion):
    mean, low, high = inversion["geometric"]([1e-4, 1e-3, 1e-2])
    assert mean == pytest.approx(1e-3) and 1e-4 < low * 1.01 < mean < high < 1.01e-2
    assert math.isnan(inversion["interval"]([None])[0])


@pytest.fixture(scope="module")
def counted(savings, editor):
    # without fakes: the model is so small that to run it is faster
    return savings["Counted"](editor, torch.device("cpu"), frames=3, size=64)


def test_nothing_saved_is_three_whole_branches_in_every_step(savings, counted):
    one = counted.forward([0]) + counted.told_each_time
    plain = counted.riding(savings["NOTHING"])
    assert plain == pytest.approx(3 * STEPS * one, rel=1e-3)


def test_every_saving_saves_and_none_twice(savings, counted):
    every, nothing, flags = savings["Savings"](), savings["NOTHING"], savings["WORDS"]
    assert set(flags) == {f.name for f in fields(every)}
    plain, least = counted.riding(nothing), counted.riding(every)
    alone = 0
    for name in flags:
        saved = plain - counted.riding(savings["Savings"](**{f: f == name for f in flags}))
        assert saved > 0, name
        alone += saved
    assert least < plain and plain - least <= alone
    assert max(counted.replaying(True), counted.replaying(False)) < least


def test_sharing_with_its_savings_left_out_gives_the_same(savings, editor, edited_frame):
    told = [editor.condition("a", edited_frame, 3, (64, 64), negative=n) for n in (False, True)]
    told = type(told[0]).stack([*told, told[0]])
    latents, sites = draw(3, 4, 3, 8, 8), frozenset().union(*editor.backbone.groups.values())
    last = max(sites, key=editor.backbone.sites.index)
    results = [
        editor.predict(latents, 501, told, savings["Sharing"](sites, 3, last, chosen))[-2:]
        for chosen in (savings["NOTHING"], savings["Savings"]())
    ]
    assert (results[0] - results[1]).norm() <= 1e-5 * results[0].norm()


def test_the_published_size_has_the_originals_sites(savings):
    editor = savings["published_size"]()
    plan = editor.plan(STEPS, 0, anyv2v.Injection())
    assert [len(sites) for sites in plan.values()] == [17] * 10 + [8] * 15 + [0] * 25


def test_tables_say_no_where_a_figure_is_missed(savings):
    words = savings["WORDS"]
    found = {"diffusers": False, "branch": 10**12, "plain": 150 * 10**12, "beside": 0}
    found |= {"riding": 10**14, "compact": 9 * 10**13, "qk": 10**14}
    found |= {"inverting": {50: 0, 100: 10**14, 150: 10**15}}
    found |= {"alone": dict.fromkeys(words, 10**14), "without": dict.fromkeys(words, 10**14)}
    found["one softmax"] = dict.fromkeys(("riding", "compact", "qk", "alone"), 10**13)
    lines = savings["operations_table"]("cpu", found).splitlines()
    assert next(x for x in lines if "100 evaluations" in x).endswith("| yes |")
    assert next(x for x in lines if "150 evaluations" in x).endswith("| NO |")
    assert np.isclose(
        float(next(x for x in lines if "50 evaluations" in x).split("|")[3]), 0.1385, 1e-3
    )
