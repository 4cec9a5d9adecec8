"""The schedule against the original's tables and steps, and against its closed form."""

import math
from dataclasses import replace

import pytest
import torch

from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.diffusion.prediction import velocity
from anyv2v.diffusion.schedule import (
    Coefficients,
    Level,
    TableSchedule,
    advance,
    match_levels,
    steps_within,
)
from anyv2v.errors import InputError
from tests.oracles import golden

TABLES = golden.tensors("scheduler")
SCHEDULE = schedule()
STEPPED = [
    (kind, steps, i)
    for kind in ("ddim", "inverse")
    for steps in (10, 50, 500)
    for i in range(len(TABLES[f"{kind}.{steps}.step.t"]))
]


def test_alpha_bar_equals_the_original_bit_for_bit():
    assert torch.equal(SCHEDULE.alphas_cumprod, TABLES["alphas_cumprod"])


def test_alpha_bar_is_the_rescaled_cosine():
    # the product of the betas telescopes, so sqrt(alpha-bar) is a shifted and stretched cosine;
    # only the last beta is clipped
    def root(i):
        return math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(
            0.008 / 1.008 * math.pi / 2
        )

    roots = [root(i + 1) for i in range(999)]
    roots.append(roots[-1] * math.sqrt(1 - 0.999))
    first, last = roots[0], roots[-1]
    truth = torch.tensor(
        [((r - last) * first / (first - last)) ** 2 for r in roots], dtype=torch.float64
    )
    ours = SCHEDULE.alphas_cumprod.double()
    assert (ours - truth).abs().max() < 1e-6
    assert ours[-1] == 0


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 10, 20, 25, 30, 50, 100, 500, 999])
def test_timesteps_equal_the_original(steps):
    timesteps = SCHEDULE.timesteps(steps)
    assert timesteps == TABLES[f"ddim.{steps}.timesteps"].tolist()
    assert timesteps[::-1] == TABLES[f"inverse.{steps}.timesteps"].tolist()


@pytest.mark.parametrize("steps", [0, -1, 1000, 5000])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=f"steps: {steps} is not a whole number from 1 to 999"):
        SCHEDULE.timesteps(steps)


@pytest.mark.parametrize("kind, steps, i", STEPPED)
def test_steps_equal_the_original(kind, steps, i):
    step = SCHEDULE.step if kind == "ddim" else SCHEDULE.inverse_step
    t = TABLES[f"{kind}.{steps}.step.t"][i].item()
    ours = step(TABLES["step.model_output"], t, TABLES["step.sample"], steps)
    assert golden.relative_error(ours, TABLES[f"{kind}.{steps}.step.prev_sample"][i]) < 2e-7


def test_a_step_is_a_rotation_of_latents_and_velocity():
    """As DDIM has it, through the clean latents and the noise, for any two levels."""
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, dtype=torch.float64)

    def at(level):
        return math.sqrt(level) * clean + math.sqrt(1 - level) * noise

    for left, target in ((0.0, 0.3), (0.3, 0.9), (0.9, 1.0), (0.5, 0.2), (1.0, 0.0)):
        v = math.sqrt(left) * noise - math.sqrt(1 - left) * clean
        by = Coefficients(*velocity(level(left), level(target)))
        assert golden.relative_error(advance(at(left), v, by), at(target)) < 1e-6


def level(left):
    return Level(0, 0, math.sqrt(left), math.sqrt(1 - left))


def test_a_step_computes_in_float32_whatever_it_is_given():
    x, v = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).half()
    by = Coefficients(*velocity(level(0.4), level(0.6)))
    out = advance(x, v, by)
    assert out.dtype == torch.float32
    assert torch.equal(out, advance(x.float(), v.float(), by))


@pytest.mark.parametrize("steps", [1, 7, 50, 999])
def test_levels_are_the_timesteps_and_the_clean_latents_or_what_lies_below(steps):
    levels, stride = SCHEDULE.levels(steps), 1000 // steps
    assert [level.index for level in levels] == list(range(steps + 1))
    assert [level.t for level in levels] == [*SCHEDULE.timesteps(steps), 1 - stride]
    assert all(type(level.t) is int for level in levels)
    table = TABLES["alphas_cumprod"].double()
    for level in levels:
        left = table[level.t].item() if level.t >= 0 else 1.0
        assert level.alpha**2 == pytest.approx(left, abs=1e-15)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-15)
    # the last level of 999 steps lies at t = 0, where the latents are a real level's
    assert (levels[-1].sigma == 0) == (steps < 999)


def test_runs_are_matched_by_their_noise():
    few, many = SCHEDULE.levels(50), SCHEDULE.levels(500)
    # 500 steps are at 999, 997, ..., 1
    assert match_levels(few[:-1], many[:-1]) == {i: (999 - few[i].t) // 2 for i in range(50)}
    assert match_levels(SCHEDULE.levels(3)[:-1], SCHEDULE.levels(7)[:-1]) == {2: 6}
    # levels that differ by what arithmetic leaves open are one; others are not
    near, other = (
        replace(few[7], index=3, alpha=few[7].alpha * by) for by in (1 + 1e-15, 1 + 1e-6)
    )
    assert match_levels([near], few) == {3: 7} and match_levels([other], few) == {}
    # as much noise, of which the network is told something else, is another level too
    for change in ({"t": few[7].t + 1}, {"sigma": few[7].sigma * (1 + 1e-6)}):
        assert match_levels([replace(few[7], **change)], few) == {}
    # one that stands for another is that one
    assert match_levels([replace(few[7], t=3, alpha=0.5, inversion_level=few[9])], few) == {7: 9}


def test_the_runs_within_given_levels_are_those_with_no_timestep_beside():
    known = SCHEDULE.levels(50)[:-1]
    wanted = [n for n in range(1, 51) if set(SCHEDULE.timesteps(n)) <= {x.t for x in known}]
    assert steps_within(SCHEDULE, known) == wanted and {1, 2, 5, 10, 25, 50} <= set(wanted)
    assert steps_within(SCHEDULE, known[1:]) != wanted


def test_what_a_network_predicts_is_one_of_the_known():
    with pytest.raises(InputError, match="prediction: 'x' is not one of v, epsilon, flow"):
        TableSchedule(TABLES["alphas_cumprod"], "x")
