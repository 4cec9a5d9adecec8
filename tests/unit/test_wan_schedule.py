"""Wan's noise levels by their definition."""

from itertools import pairwise

import pytest

from anyv2v.backbones.wan.schedule import SHIFTS, FlowSchedule
from anyv2v.diffusion.samplers import sample
from anyv2v.diffusion.schedule import match_levels
from anyv2v.errors import InputError
from tests.draw import normal
from tests.oracles.golden import relative_error


@pytest.mark.parametrize("steps", [1, 2, 50, 250, 1000])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_levels(steps, shift):
    levels = FlowSchedule(shift).levels(steps)
    assert [level.index for level in levels] == list(range(steps + 1))
    assert all(level.alpha + level.sigma == 1 for level in levels)
    assert all(level.sigma > target.sigma for level, target in pairwise(levels))
    assert (levels[-1].t, levels[-1].alpha, levels[-1].sigma) == (0, 1, 0)
    assert levels[0].sigma == pytest.approx(1 - 1e-6, abs=1e-7)
    assert levels[0].t == 999
    # the shift multiplies sigma / alpha, and without it levels are 0.999 / steps apart
    for level in levels[1:-1]:
        even = 1 - 0.999 * level.index / steps
        assert level.sigma / level.alpha == pytest.approx(shift * even / (1 - even), rel=1e-3)
        assert level.t == int(level.t) and 0 <= 1000 * level.sigma - level.t < 1 + 1e-4


def test_levels_that_are_told_the_same_timestep_are_different_levels():
    levels = FlowSchedule(5.0).levels(500)
    assert len({level.t for level in levels[:-1]}) == 415
    assert len({level.identity for level in levels}) == 501
    assert match_levels(levels, levels) == {i: i for i in range(501)}
    # the pure noise, the clean end, and the middle of the grid
    assert match_levels(FlowSchedule(5.0).levels(2), levels) == {0: 0, 1: 250, 2: 500}


def test_sampling_with_an_exact_prediction_ends_at_the_clean_latents():
    clean, noise = normal(2, 1, 4, 3, 4, 4).unbind()
    schedule = FlowSchedule(5.0)
    x = (first := schedule.levels(7)[0]).alpha * clean + first.sigma * noise
    found = sample(lambda level, x: noise - clean, x, schedule, 7)
    assert relative_error(found, clean) <= 1e-6
    # and back again, one step from each level to the noisier one
    for target, level in pairwise(schedule.levels(7)[::-1]):
        a, b, fresh = schedule.coefficients(target, level)
        found = a * found + b * (noise - clean)
        assert fresh == 0
    assert relative_error(found, x) <= 1e-6


@pytest.mark.parametrize("steps", [0, 1001, 2.5, True])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=f"steps: {steps} is not a whole number from 1 to 1000"):
        FlowSchedule(5.0).levels(steps)


@pytest.mark.parametrize("steps", [1, 50, 1000])
@pytest.mark.parametrize("shift", SHIFTS)
def test_levels_fall_with_every_shift(shift, steps):
    sigmas = [level.sigma for level in FlowSchedule(shift).levels(steps)]
    assert all(a > b for a, b in pairwise(sigmas)) and sigmas[0] < 1


@pytest.mark.parametrize("shift", [0, -1, float("nan"), "5", 1e-300, 101, 1e300])
def test_impossible_shifts_are_refused(shift):
    with pytest.raises(InputError, match="shift: "):
        FlowSchedule(shift)
