"""What networks predict, and how it is stepped: closed forms, diffusers, and there and back."""

import math
from itertools import pairwise

import pytest
import torch

from anyv2v.backbones.i2vgen.schedule import alphas_cumprod
from anyv2v.diffusion.inversion import InversionState, ddim, fixed_point
from anyv2v.diffusion.prediction import PREDICTIONS
from anyv2v.diffusion.samplers import sample
from anyv2v.diffusion.schedule import Coefficients, Level, TableSchedule, advance, match_levels
from anyv2v.diffusion.trajectory import Trajectory
from anyv2v.errors import InputError
from tests.draw import normal
from tests.oracles import golden

ALPHAS = alphas_cumprod()
SHAPE = (1, 4, 3, 5, 6)

# what each kind of network predicts of clean latents and noise, from the papers
TRUTH = {
    "v": lambda level, clean, noise: level.alpha * noise - level.sigma * clean,
    "epsilon": lambda level, clean, noise: noise,
    "flow": lambda level, clean, noise: noise - clean,
}


class Grid:
    """A schedule of levels that are written out; steps by `prediction`, with noise if wanted."""

    def __init__(self, prediction, levels, noise=0.0):
        self.prediction, self.noise = PREDICTIONS[prediction], noise
        self.all = [Level(i, *level) for i, level in enumerate(levels)]

    def levels(self, steps):
        assert steps == len(self.all) - 1
        return self.all

    def coefficients(self, level, target):
        return Coefficients(*self.prediction(level, target), self.noise * target.sigma)


def circle(*left):
    """Levels where alpha^2 + sigma^2 = 1, by alpha^2."""
    return [(1000 * (1 - x), math.sqrt(x), math.sqrt(1 - x)) for x in left]


def line(*sigmas):
    """Levels where alpha + sigma = 1."""
    return [(1000 * s, 1 - s, s) for s in sigmas]


GRIDS = {
    "v": Grid("v", circle(0.0, 0.1, 0.4, 0.8, 1.0)),
    "epsilon": Grid("epsilon", circle(1e-4, 0.1, 0.4, 0.8, 1.0)),
    "flow": Grid("flow", line(1.0, 0.9, 0.6, 0.25, 0.0)),
}


def at(level, clean, noise):
    return level.alpha * clean + level.sigma * noise


@pytest.mark.parametrize("kind", GRIDS)
def test_a_perfect_prediction_moves_along_the_line_of_clean_latents_and_noise(kind):
    """Between any two levels, up and down; in float64, because coefficients are numbers."""
    clean, noise = normal(*SHAPE).double(), normal(*SHAPE, seed=1).double()
    levels = GRIDS[kind].levels(4)
    for level in levels:
        predicted = TRUTH[kind](level, clean, noise)
        for target in levels:
            a, b = PREDICTIONS[kind](level, target)
            moved = a * at(level, clean, noise) + b * predicted
            # epsilon's first level has almost no signal to divide by
            allowed = 1e-12 if level.alpha > 0.1 or kind != "epsilon" else 1e-10
            assert golden.relative_error(moved, at(target, clean, noise)) < allowed


@pytest.mark.parametrize("kind", GRIDS)
def test_sampling_with_a_perfect_network_gives_the_clean_latents(kind):
    clean, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    grid = GRIDS[kind]
    begin = at(grid.levels(4)[0], clean, noise)
    out = sample(lambda level, x: TRUTH[kind](level, clean, noise), begin, grid, 4)
    assert out.dtype == torch.float32
    # of epsilon what is left of the noise is divided by alpha = 0.01
    assert golden.relative_error(out, clean) < (1e-4 if kind == "epsilon" else 1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_plain_inversion_is_exact_where_the_prediction_is_the_same_at_every_level(kind):
    clean, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    grid = GRIDS[kind]
    states = ddim(
        lambda level, x: TRUTH[kind](level, clean, noise), InversionState.start(clean), grid, 4
    )
    for level, state in zip(grid.levels(4)[-2::-1], states, strict=True):
        assert state.latest == level.index
        assert golden.relative_error(state.latents, at(level, clean, noise)) < 1e-6


def bent(level, x):
    """Something that no straight line fits."""
    return torch.tanh(2 * x.roll(1, -1) - x) * (0.3 + 0.3 * level.sigma)


@pytest.mark.parametrize("kind", GRIDS)
def test_what_a_fixed_point_inverts_comes_back(kind):
    clean = normal(*SHAPE)
    sigmas = [i / 12 for i in range(12, -1, -1)]
    # epsilon has no step from where no signal is left
    most = 0.95 if kind == "epsilon" else 1.0
    levels = line(*sigmas) if kind == "flow" else circle(*(1 - most * s for s in sigmas))
    grid = Grid(kind, levels)
    *_, last = fixed_point(
        bent, InversionState.start(clean), grid, 12, tolerance=1e-5, budget=12 * 12
    )
    assert max(last.residuals.values()) < 1e-5 and list(last.residuals) == list(last.trajectory)
    assert golden.relative_error(sample(bent, last.trajectory[0], grid, 12), clean) < 1e-4
    # from any step on
    assert golden.relative_error(sample(bent, last.trajectory[5], grid, 12, start=5), clean) < 1e-4
    # which is no property of these networks: one evaluation a step misses
    *_, plain = ddim(bent, InversionState.start(clean), grid, 12)
    assert golden.relative_error(sample(bent, plain.trajectory[0], grid, 12), clean) > 3e-3


@pytest.mark.parametrize("kind, named", [("v", "v_prediction"), ("epsilon", "epsilon")])
def test_a_step_equals_that_of_diffusers(kind, named):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=named,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    ours = TableSchedule(theirs.alphas_cumprod, kind, offset=1)
    theirs.set_timesteps(7)
    assert ours.timesteps(7) == theirs.timesteps.tolist()
    x, prediction = normal(*SHAPE), normal(*SHAPE, seed=1)
    for level, target in pairwise(ours.levels(7)):
        truth = theirs.step(prediction, level.t, x).prev_sample
        assert golden.relative_error(ours.step(prediction, level.t, x, 7), truth) < 1e-6
        assert ours.coefficients(level, target).noise == 0


def test_a_step_of_flow_equals_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(7)
    sigmas = theirs.sigmas.tolist()
    grid = Grid("flow", line(*sigmas))
    x, prediction = normal(*SHAPE), normal(*SHAPE, seed=1)
    for level, target in pairwise(grid.levels(7)):
        truth = theirs.step(prediction, theirs.timesteps[level.index], x).prev_sample
        assert level.t == pytest.approx(theirs.timesteps[level.index].item(), rel=1e-6)
        ours = advance(x, prediction, grid.coefficients(level, target))
        assert golden.relative_error(ours, truth) < 1e-6


def test_a_sampler_that_adds_noise_takes_it_step_by_step():
    """x' = a x + b f + c z_i, with f = x / 2, so that the whole run has a closed form."""
    grid = Grid("flow", line(0.75, 0.5, 0.25, 0.0), noise=0.5)
    begin, given = normal(*SHAPE), {i: normal(*SHAPE, seed=9 + i) for i in range(3)}
    asked = []

    def step_noise(index):
        asked.append(index)
        return given[index]

    out = sample(lambda level, x: x / 2, begin, grid, 3, step_noise=step_noise)
    # every step is sigma smaller by 1/4: a + b / 2 = 7/8. the noise of a step is half of the sigma
    # that it comes to, and the last one adds none
    assert asked == [0, 1]
    r = 7 / 8
    truth = r**3 * begin.double() + r**2 * 0.25 * given[0] + r * 0.125 * given[1]
    assert golden.relative_error(out, truth) < 1e-6
    # from the second step on it is asked for the noise of that step
    asked.clear()
    sample(lambda level, x: x / 2, begin, grid, 3, start=1, step_noise=step_noise)
    assert asked == [1]


def test_what_comes_after_a_step_may_replace_its_latents():
    grid, begin = GRIDS["flow"], normal(*SHAPE)
    seen, told = [], []

    def after_step(index, latents):
        seen.append((index, latents))
        return latents * 2 if index == 2 else None

    out = sample(
        lambda level, x: 0 * x,
        begin,
        grid,
        4,
        start=1,
        on_step=lambda i, t, x: told.append((i, t, x)),
        after_step=after_step,
    )
    # with this network a step leaves the latents as they are
    assert torch.equal(out, 2 * begin)
    assert [index for index, _ in seen] == [1, 2, 3]
    assert [torch.equal(x, y) for (_, x), y in zip(seen, (begin, begin, 2 * begin), strict=True)]
    # on_step sees what the next step starts from
    assert [(i, t) for i, t, _ in told] == [(level.index, level.t) for level in grid.all[1:4]]
    assert torch.equal(told[1][2], 2 * begin)


CLOSE = Grid("flow", [(1000.4, 0.0, 1.0), (1000.2, 0.3, 0.7), (999.9, 0.6, 0.4), (0.0, 1.0, 0.0)])
"""Timesteps that round to one number."""


def test_timesteps_that_round_to_one_number_are_kept_apart():
    clean = normal(*SHAPE)
    *_, last = fixed_point(bent, InversionState.start(clean), CLOSE, 3)
    assert list(last.trajectory) == [2, 1, 0]
    trajectory = Trajectory(clean, last.trajectory, CLOSE.levels(3))
    for index in range(3):
        assert torch.equal(trajectory.at(index), last.trajectory[index])
    assert len({x.double().sum().item() for x in last.trajectory.values()}) == 3
    assert match_levels(trajectory.stored_levels, CLOSE.levels(3)) == {2: 2, 1: 1, 0: 0}
    for read in (lambda: trajectory[1000], lambda: list(trajectory), lambda: len(trajectory)):
        with pytest.raises(InputError, match=r"not different whole numbers; source.at\(index\)"):
            read()


def test_whole_timesteps_name_the_latents_and_zero_the_clean_ones():
    clean, kept = normal(*SHAPE), {i: normal(*SHAPE, seed=1 + i) for i in (0, 2)}
    levels = [Level(i, t, 0.5, 0.5) for i, t in enumerate((21, 11, 1, -9))]
    trajectory = Trajectory(clean, kept, levels)
    assert list(trajectory) == [0, 1, 21] and len(trajectory) == 3 and 11 not in trajectory
    assert torch.equal(trajectory[0], clean) and torch.equal(trajectory[21], kept[0])
    assert [level.t for level in trajectory.stored_levels] == [1, 21]


def test_timestep_0_is_a_level_where_it_is_one():
    """The clean latents are then found under their own name alone."""
    clean, kept = normal(*SHAPE), {i: normal(*SHAPE, seed=1 + i) for i in range(2)}
    levels = TableSchedule(ALPHAS, "v").levels(2)
    assert [level.t for level in levels] == [500, 0, -500]
    trajectory = Trajectory(clean, kept, levels)
    assert list(trajectory) == [0, 500]
    assert torch.equal(trajectory[0], kept[1]) and torch.equal(trajectory.clean, clean)


def test_what_a_trajectory_has_not_is_refused():
    clean = normal(*SHAPE)
    levels = TableSchedule(ALPHAS, "v", 1).levels(3)
    trajectory = Trajectory(clean, {0: clean, 2: clean}, levels)
    with pytest.raises(InputError, match="index: no latents of step 1 were kept; there are 2, 0"):
        trajectory.at(1)
    for index in (-1, 3, 1.0):
        with pytest.raises(InputError, match=f"index: {index} is not a whole number from 0 to 2"):
            trajectory.at(index)
    with pytest.raises(InputError, match="there is no step 3 of 3"):
        Trajectory(clean, {3: clean}, levels)
    with pytest.raises(InputError, match="shapes of the latents differ"):
        Trajectory(clean, {0: clean[:, :, 1:]}, levels)
