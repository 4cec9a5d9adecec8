"""Inversion: from clean latents up to the noise that sampling would have made them from.

Both methods are generators that yield an `InversionState` after each step, and can be started from
any such state. Latents between the steps are float32, whatever dtype the network computes in.

Latents that are not finite raise NotFiniteError; the caller's `check` words its message, given
(number of steps done before, timestep). On a GPU plain DDIM may raise it some steps later, and for
its last steps only when the caller calls `check.finish()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from anyv2v.diffusion.samplers import Predict
from anyv2v.diffusion.schedule import Level, NoiseSchedule, advance
from anyv2v.runtime.finite import FiniteCheck

TOLERANCE = 3e-3
"""Default for the largest relative residual of a fixed point; see bench/README.md."""
LAST_FACTOR = 0.1
"""Default factor on the tolerance in the last, noisiest step of an inversion."""
STEP_CAP = 12
"""The most evaluations of the network in one step of a fixed-point inversion."""
HISTORY = 4
"""The most iterates of one step that Anderson's acceleration combines, the latest included."""


@dataclass(frozen=True)
class InversionState:
    """An inversion after some of its steps, from which it can go on."""

    clean: Tensor
    """The clean latents of the video, (1, c, f, h, w) float32."""
    latents: Tensor
    """The latents that the next step starts from, float32 in the shape of `clean`."""
    trajectory: Mapping[int, Tensor] = field(default_factory=dict)
    """Index of a level (0: the noisiest) -> latents there; the least noisy level comes first."""
    evaluations: int = 0
    """Number of calls of the network so far."""
    residuals: Mapping[int, float] = field(default_factory=dict)
    """Index of a level -> relative residual |g(x) - x| / |x| of the latents x stored there, where g
    is the fixed-point iteration; empty for plain DDIM."""
    predictions: tuple[Tensor, ...] = ()
    """The network's predictions at the last two levels or fewer, float32, which `fixed_point`
    extrapolates for its next initial guess; empty for plain DDIM."""
    offsets: Mapping[int, Tensor] = field(default_factory=dict)
    """Index of a level from which the step of sampling was not solved -> what the step misses."""

    @classmethod
    def start(cls, clean: Tensor) -> InversionState:
        """Returns the state before the first step of inverting `clean` (1, c, f, h, w)."""
        clean = clean.float()
        return cls(clean, clean)

    @property
    def steps(self) -> int:
        """The number of steps that are done."""
        return len(self.trajectory)

    @property
    def latest(self) -> int:
        """The index of the noisiest level reached so far; at least one step must be done."""
        return [*self.trajectory][-1]


Inversion = Callable[..., Iterator[InversionState]]
"""(predict, state, schedule, steps, ..., check) -> the state after each step that is left."""


def ddim(
    predict: Predict,
    state: InversionState,
    schedule: NoiseSchedule,
    steps: int,
    check: FiniteCheck | None = None,
) -> Iterator[InversionState]:
    """Inverts by plain DDIM (arXiv 2105.05233, appendix F), as the original AnyV2V does.

    For networks that predict the velocity of a flow, this is Euler's method.

    Yields the state after each step that `state` has left of `steps`. In a step from one level up
    to a noisier one the network is given the noisier level, but the latents of the cleaner one:
    that costs one evaluation per step and is inexact. Raises NotFiniteError if latents are not
    finite; `check` words its message, and None words it plainly.
    """
    check = check or FiniteCheck()
    for level, below in _remaining_steps(state, schedule, steps):
        prediction = predict(level, state.latents)
        latents = advance(state.latents, prediction, schedule.coefficients(below, level))
        check.look(latents, (state.steps, level.t))
        state = replace(
            state,
            trajectory={**state.trajectory, level.index: latents},
            latents=latents,
            evaluations=state.evaluations + 1,
        )
        yield state


def fixed_point(
    predict: Predict,
    state: InversionState,
    schedule: NoiseSchedule,
    steps: int,
    tolerance: float = TOLERANCE,
    budget: int | None = None,
    last_factor: float = LAST_FACTOR,
    check: FiniteCheck | None = None,
    last: int = 0,
    noise: Tensor | None = None,
    solved_from: float = 0.0,
) -> Iterator[InversionState]:
    """Inverts by solving each step of sampling for the latents that it would have started from.

    Yields the state after each step that `state` has left of `steps`. Sampling computes
    x_s = a x_t + b f(x_t, t) from x_t, where f is the network's prediction. So x_t is the fixed
    point of g(x) = (x_s - b f(x, t)) / a, a contraction where b is small; with v-prediction a and b
    are the cosine and the negative sine of a small angle, so nothing is singular at any level. The
    first guess of a step is g with f extrapolated linearly from the last two predictions.
    Anderson's acceleration (doi 10.1145/321296.321305) then iterates until the relative residual is
    at most `tolerance` or the evaluations are spent: `STEP_CAP` in one step, `budget` in all
    (None: `default_budget(steps)`). At the level of index `last` (0 the noisiest) the tolerance is
    multiplied by `last_factor`, because sampling starts from its latents exactly as stored.

    The trajectory stores the iterate x that was evaluated last: the network computes the same
    features there as for the source in sampling. The next step starts from g(x), nearer to the
    fixed point. Raises NotFiniteError, worded by `check`, for latents that are not finite.

    Steps of sampling to a sigma below `solved_from` are not solved: where a step removes all noise,
    g is no contraction, since many latents lead to the same. The latents that these steps start
    from are the clean ones with `noise`, standard normal and in their shape.
    """
    check, budget = check or FiniteCheck(), default_budget(steps) if budget is None else budget
    for level, below in _remaining_steps(state, schedule, steps):
        a, b, _ = schedule.coefficients(level, below)

        def solve(f: Tensor, start=state.latents, a=a, b=b) -> Tensor:
            return (start - b * f.float()) / a

        # f changes slowly from level to level, so the extrapolated f leads near the fixed point.
        # The first step has no f. It starts from a copy: the trajectory must not alias `clean`
        x = solve(_extrapolated(state.predictions)) if state.predictions else state.latents.clone()
        if drawn := below.sigma < solved_from:
            assert noise is not None, "steps that are not solved need `noise`"
            x = level.alpha * state.clean + level.sigma * noise
        # every later step needs one evaluation at least; the rest of the budget may be spent here
        spare = budget - state.evaluations - (steps - state.steps)
        allowed = 1 if drawn else 1 + max(0, min(STEP_CAP - 1, spare))
        threshold = tolerance * (last_factor if level.index == last else 1)
        iterates, solutions = [], []
        while True:
            f = predict(level, x)
            iterates.append(x)
            solutions.append(solve(f))
            residual, weights = _anderson_weights(iterates[-HISTORY:], solutions[-HISTORY:])
            if weights is None:
                raise check.error((state.steps, level.t), [0])
            if residual <= threshold or len(iterates) == allowed:
                break
            x = _mixed(solutions, weights)
        state = InversionState(
            clean=state.clean,
            latents=x if drawn else solutions[-1],
            trajectory={**state.trajectory, level.index: iterates[-1]},
            evaluations=state.evaluations + len(iterates),
            residuals={**state.residuals, level.index: residual},
            predictions=(*state.predictions, f.float())[-2:],
            offsets={**state.offsets, **({level.index: a * (solutions[0] - x)} if drawn else {})},
        )
        yield state


def default_budget(steps: int, per_step: float = 1.5) -> int:
    """Returns the `budget` of `fixed_point` for so many evaluations `per_step`, rounded up."""
    return math.ceil(per_step * steps)


METHODS: dict[str, Inversion] = {"fixed-point": fixed_point, "ddim": ddim}
"""Name of an inversion method -> the function that yields its states."""


def _remaining_steps(
    state: InversionState, schedule: NoiseSchedule, steps: int
) -> list[tuple[Level, Level]]:
    """The steps that are left, the least noisy first: (a level, the one below it)."""
    return list(pairwise(schedule.levels(steps)))[::-1][state.steps :]


def _extrapolated(predictions: tuple[Tensor, ...]) -> Tensor:
    return predictions[-1] if len(predictions) == 1 else 2 * predictions[-1] - predictions[-2]


def _mixed(solutions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The next iterate: the latest solution, and weighted differences of those before it."""
    x = latest = solutions[-1]
    for weight, earlier in zip(weights, solutions[-1 - len(weights) : -1], strict=True):
        x = x + weight * (earlier - latest)
    return x


def _anderson_weights(
    iterates: list[Tensor], solutions: list[Tensor]
) -> tuple[float, list[float] | None]:
    """The relative residual of the last iterate, and the weights of the earlier solutions.

    With r_i = solution_i - iterate_i, the weights w minimize |r_n + sum w_i (r_i - r_n)|: if the
    residual changes along straight lines, it vanishes at the mixture with these weights. They solve
    the normal equations of this least-squares problem. None if a solution is not finite.
    """
    residuals = [b - a for a, b in zip(iterates, solutions, strict=True)]
    changes = [residuals[-1] - r for r in residuals[:-1]]
    rows = torch.stack([iterates[-1], residuals[-1], *changes]).flatten(1).double()
    # all inner products in one matrix: the only transfer from the device, which waits for it
    products = (rows @ rows.T).cpu()
    # products of float32 values cannot overflow float64: they are finite if the values are
    if not np.isfinite(products.numpy()).all():
        return math.nan, None
    size, missed, normal = products[0, 0], products[1, 1], products[2:, 2:]
    # if residuals are equal but for rounding, the equations leave the weights open. The damping
    # keeps them below 5000 there, and is too small to matter elsewhere
    damping = 1e-12 * normal.trace() + 1e-8 * missed
    damped = normal + damping.clamp(min=1e-300) * torch.eye(len(changes), dtype=normal.dtype)
    return (missed / size).sqrt().item(), torch.linalg.solve(damped, products[2:, 1]).tolist()
