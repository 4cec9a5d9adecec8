"""The fixed-point inversion against closed forms, and against the sampling that it inverts."""

import math
from itertools import islice

import pytest
import torch

from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.diffusion import inversion
from anyv2v.diffusion.inversion import InversionState, ddim, default_budget, fixed_point
from anyv2v.diffusion.samplers import sample
from tests.oracles import golden

SCHEDULE = schedule()
STEPS = 50


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def counted(predict):
    """The same, and the list of the steps it was asked about."""
    asked = []

    def ask(level, x):
        asked.append(level.index)
        return predict(level, x)

    return ask, asked


def run(predict, clean, steps=STEPS, **options):
    *_, last = fixed_point(predict, InversionState.start(clean), SCHEDULE, steps, **options)
    return last


def angle(t):
    level = SCHEDULE.alpha_bar(t)
    return math.acos(math.sqrt(level))


@pytest.mark.parametrize("slope", [0.0, 0.5, -0.8])
@pytest.mark.parametrize("steps", [2, 7, STEPS, 999])
def test_a_linear_network_is_inverted_in_closed_form(slope, steps):
    """For v = c x each step of sampling multiplies by cos d - c sin d; inverting divides by it.

    999 steps begin where no signal is left.
    """
    clean = draw(1, 4, 3, 5, 6)
    inverted = run(lambda level, x: slope * x, clean, steps, tolerance=1e-7, budget=20 * steps)
    factor, stride = 1.0, 1000 // steps
    for i, t in reversed(list(enumerate(SCHEDULE.timesteps(steps)))):
        turn = angle(t) - (angle(t - stride) if t >= stride else 0.0)
        factor /= math.cos(turn) - slope * math.sin(turn)
        assert golden.relative_error(inverted.trajectory[i], factor * clean) < 1e-4
    assert all(x.isfinite().all() for x in inverted.trajectory.values())


def bent(level, x):
    """Something that no straight line fits, steepest where the noise is least, as a UNet is."""
    return torch.tanh(2 * x.roll(1, -1) - x) * (0.3 + 3.0 * math.exp(-level.t / 20))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_sampling_comes_back_within_the_tolerance(tolerance):
    clean = draw(1, 4, 3, 5, 6)
    inverted = run(bent, clean, tolerance=tolerance, budget=1000)
    back = sample(bent, inverted.trajectory[inverted.latest], SCHEDULE, STEPS)
    error = golden.relative_error(back, clean)
    assert error < 5 * tolerance
    # plain inversion with ten times as many steps does not come near the last of these
    *_, plain = ddim(bent, InversionState.start(clean), SCHEDULE, 500)
    begin = plain.trajectory[SCHEDULE.timesteps(500).index(981)]
    missed = golden.relative_error(sample(bent, begin, SCHEDULE, STEPS), clean)
    assert missed > 0.02 and (tolerance > 1e-4 or error < missed / 100)


def test_what_is_kept_was_evaluated_and_misses_its_step_by_what_is_reported():
    clean, asked = draw(1, 4, 3, 5, 6), {}

    def predict(level, x):
        asked[level.index] = (x, bent(level, x))
        return asked[level.index][1]

    states = list(fixed_point(predict, InversionState.start(clean), SCHEDULE, STEPS))
    assert [state.latest for state in states] == list(range(STEPS))[::-1]
    for before, after in zip([InversionState.start(clean), *states], states, strict=False):
        i = after.latest
        (x, v), t = asked[i], SCHEDULE.timesteps(STEPS)[i]
        assert torch.equal(after.trajectory[i], x)
        # a step of sampling from what is kept, against where the step began
        landed = SCHEDULE.step(v, t, x, STEPS)
        turn = angle(t) - (angle(t - 20) if t >= 20 else 0.0)
        missed = (landed - before.latents).norm() / x.norm() / math.cos(turn)
        assert missed.item() == pytest.approx(after.residuals[i], rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("budget", [STEPS, STEPS + 7, 2 * STEPS, 1000])
def test_the_budget_is_kept_and_counted(budget):
    predict, asked = counted(bent)
    inverted = run(predict, draw(1, 4, 3, 5, 6), tolerance=1e-12, budget=budget)
    assert inverted.evaluations == len(asked) <= budget
    assert set(asked) == set(range(STEPS))
    # all of a small budget; of a large one what it takes until nothing changes any more
    assert len(asked) == budget or budget == 1000


@pytest.mark.parametrize("steps", [1, 2, 7, STEPS])
def test_by_default_three_evaluations_for_two_steps_are_never_exceeded(steps):
    predict, asked = counted(lambda level, x: 40 * x.roll(1, -1).sin())
    run(predict, draw(1, 4, 3, 5, 6), steps)
    # what can be spent is: this network is nowhere near solved by it
    assert len(asked) == default_budget(steps) == math.ceil(1.5 * steps)


def test_no_latents_are_kept_twice_under_two_names():
    """A source could not be saved; the first step may be near enough where it starts."""
    clean = draw(1, 4, 3, 5, 6)
    inverted = run(bent, clean, tolerance=10.0)
    assert inverted.evaluations == STEPS
    assert len({x.data_ptr() for x in (clean, *inverted.trajectory.values())}) == 1 + STEPS


@pytest.mark.parametrize("last", [1.0, 0.1, 0.01])
def test_the_last_step_is_solved_more_exactly_than_the_others(last):
    clean, tolerance = draw(1, 4, 3, 5, 6), 1e-3
    for index in (0, 3):  # an edit that begins at a later step reads the latents there
        options = {"budget": 1000, "last_factor": last, "last": index}
        inverted = run(bent, clean, tolerance=tolerance, **options)
        others = [x for i, x in inverted.residuals.items() if i != index]
        assert last * tolerance < max(others) <= tolerance or last == 1
        assert inverted.residuals[index] <= last * tolerance


def test_acceleration_solves_in_few_steps_what_plain_iteration_does_not():
    """In two dimensions two earlier residuals span everything."""
    clean = draw(1, 1, 1, 1, 2, seed=3)
    matrix = torch.tensor([[0.0, 20.0], [-20.0, 0.0]])  # contracts by 0.7 a step at the start
    predict, asked = counted(lambda level, x: x @ matrix)
    (first, second) = islice(
        fixed_point(predict, InversionState.start(clean), SCHEDULE, STEPS, 1e-5, 10**4), 2
    )
    turn = angle(21) - angle(1)
    assert 0.5 < 20 * math.tan(turn) < 1
    exact = torch.linalg.solve(
        math.cos(turn) * torch.eye(2) - math.sin(turn) * matrix.T, first.latents.view(2)
    )
    assert golden.relative_error(second.trajectory[second.latest].view(2), exact) < 1e-4
    # plain iteration needs log(1e-5) / log(0.7) = 32
    assert asked.count(STEPS - 2) <= 6


def mixture(tried, solved):
    """What accelerated iteration goes on from."""
    _, weights = inversion._anderson_weights(tried, solved)
    pairs = zip(weights, solved[:-1], strict=True)
    return solved[-1] + sum((w * (s - solved[-1]) for w, s in pairs), torch.zeros(()))


@pytest.mark.parametrize("earlier", [1, 2, 3])
def test_the_mixture_is_the_one_whose_residuals_best_cancel(earlier):
    """Against a solver for least squares on the whole residuals, in float64."""
    tried = [draw(1, 4, 3, 5, 6, seed=i) for i in range(earlier + 1)]
    residuals = [0.1**i * draw(1, 4, 3, 5, 6, seed=9 + i) for i in range(earlier + 1)]
    solved = [x + r for x, r in zip(tried, residuals, strict=True)]
    whole = torch.stack([r.flatten().double() for r in residuals], dim=1)
    weights = torch.linalg.lstsq(whole[:, -1:] - whole[:, :-1], whole[:, -1]).solution
    images = torch.stack([s.flatten().double() for s in solved], dim=1)
    wanted = images[:, -1] - (images[:, -1:] - images[:, :-1]) @ weights
    assert golden.relative_error(mixture(tried, solved).flatten(), wanted) < 1e-5
    relative = inversion._anderson_weights(tried, solved)[0]
    assert relative == pytest.approx((whole[:, -1].norm() / tried[-1].norm()).item(), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e15])
def test_residuals_that_cannot_be_told_apart_leave_a_mixture_finite(scale):
    """The matrix of their changes is zero, or has equal rows."""
    once, other = scale * draw(1, 4, 3, 5, 6), scale * draw(1, 4, 3, 5, 6, seed=1)
    starts = [scale * draw(1, 4, 3, 5, 6, seed=2 + i) for i in range(4)]
    for residuals in ([once] * 4, [once, once, once, other], [other, once, other, once]):
        solved = [x + r for x, r in zip(starts, residuals, strict=True)]
        exact = [s - r for s, r in zip(solved, residuals, strict=True)]
        assert (mixture(exact, solved) / scale).abs().max() < 1e5
    nothing = torch.zeros(1, 4, 3, 5, 6)
    assert torch.equal(mixture([once] * 3, [once] * 3), once + nothing)


@pytest.mark.parametrize("method", [fixed_point, ddim])
@pytest.mark.parametrize("done", [1, 2, 17, 49])
def test_an_inversion_goes_on_where_it_was(method, done):
    clean = draw(1, 4, 3, 5, 6)
    states = list(method(bent, InversionState.start(clean), SCHEDULE, STEPS))
    *_, resumed = method(bent, states[done - 1], SCHEDULE, STEPS)
    assert resumed.evaluations == states[-1].evaluations
    assert list(resumed.trajectory) == list(states[-1].trajectory)
    assert all(torch.equal(x, states[-1].trajectory[i]) for i, x in resumed.trajectory.items())
