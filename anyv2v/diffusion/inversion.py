"""Inversion: the latents at every noise level that sampling would have come from.

Both methods are generators: they give where they stand after each step, and go on from there.
The latents between the steps are float32, whatever the network computes in. Where they are not
finite a NotFiniteError says so: what the method's `check` makes of (steps before, timestep).
On a GPU plain DDIM may find it some steps later, and of its last steps in `check.finish()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from anyv2v.diffusion.samplers import Predict
from anyv2v.diffusion.schedule import Level, NoiseSchedule, advance
from anyv2v.runtime.finite import FiniteCheck

TOLERANCE = 3e-3
"""Of the fixed point, by default: relative to the latents. What it buys is in README."""
LAST = 0.1
"""Part of the tolerance that is allowed in the last, noisiest step."""
STEP_CAP = 12
"""Evaluations that one step may take."""
MEMORY = 4
"""Earlier iterates that an accelerated one looks back on."""


@dataclass(frozen=True)
class Inverted:
    """An inversion after some of its steps."""

    clean: Tensor
    """(1, c, f, h, w) float32."""
    latents: Tensor
    """What the next step starts from."""
    kept: Mapping[int, Tensor] = field(default_factory=dict)
    """Index of a level in the run, 0 the noisiest -> latents, in the order in which they came."""
    evaluations: int = 0
    residuals: Mapping[int, float] = field(default_factory=dict)
    """Index -> relative residual of the fixed point: |x - solve(x)| / |x|."""
    slopes: tuple[Tensor, ...] = ()
    """The last two predictions, which the first guess of the next step extrapolates."""

    @classmethod
    def of(cls, clean: Tensor) -> Inverted:
        clean = clean.float()
        return cls(clean, clean)

    @property
    def steps(self) -> int:
        """How many are done."""
        return len(self.kept)

    @property
    def latest(self) -> int:
        """The index of the level that it has come to; there is none before the first step."""
        return next(reversed(self.kept))


Inversion = Callable[..., Iterator[Inverted]]


def ddim(
    predict: Predict,
    state: Inverted,
    schedule: NoiseSchedule,
    steps: int,
    check: FiniteCheck | None = None,
) -> Iterator[Inverted]:
    """Plain DDIM inversion (arXiv 2105.05233, appendix F), as the original runs it.

    The network is asked about the level that is stepped to, but of the latents that are
    stepped from: one evaluation a step, and inexact.
    """
    check = check or FiniteCheck()
    for level, below in _todo(state, schedule, steps):
        prediction = predict(level, state.latents)
        latents = advance(state.latents, prediction, schedule.coefficients(below, level))
        check.look(latents, (state.steps, level.t))
        state = replace(
            state,
            kept={**state.kept, level.index: latents},
            latents=latents,
            evaluations=state.evaluations + 1,
        )
        yield state


def fixed_point(
    predict: Predict,
    state: Inverted,
    schedule: NoiseSchedule,
    steps: int,
    tolerance: float = TOLERANCE,
    budget: int | None = None,
    last: float = LAST,
    check: FiniteCheck | None = None,
) -> Iterator[Inverted]:
    """Solves each step of sampling for the latents it would have come from.

    Sampling makes x_s = a x_t + b f(x_t, t) of x_t, where f is what the network predicts. So x_t is
    the fixed point of x -> (x_s - b f(x, t)) / a, which contracts where b is small; with
    v-prediction a and b are the cosine and the negative sine of a small angle, so nothing is
    singular at any level. It starts where the last two f, extrapolated linearly, lead, and goes on
    by Anderson's acceleration (doi 10.1145/321296.321305) until the residual is within `tolerance`
    or the evaluations are spent: STEP_CAP in one step, `budget` (see `most`) in all. The last step
    has to come within `last` * tolerance: sampling starts from its latents as they are kept, while
    of the others the next step takes the iterate after.

    What is kept is the iterate that was evaluated last: what the network computed there is what
    it will compute of the source in sampling. The next step starts from the iterate after it, which
    is nearer by one contraction and costs nothing.
    """
    check = check or FiniteCheck()
    budget = most(steps) if budget is None else budget
    for level, below in _todo(state, schedule, steps):
        a, b, _ = schedule.coefficients(level, below)

        def solve(f: Tensor, start=state.latents, a=a, b=b) -> Tensor:
            return (start - b * f.float()) / a

        # a copy, because what is kept may not be the clean latents under another name
        x = solve(_extrapolated(state.slopes)) if state.slopes else state.latents.clone()
        spare = budget - state.evaluations - (steps - state.steps)
        within = tolerance * (last if level.index == 0 else 1)
        tried, solved = [], []
        for _ in range(1 + max(0, min(STEP_CAP - 1, spare))):
            f = predict(level, x)
            tried.append(x)
            solved.append(solve(f))
            residual, weights = _look_back(tried[-MEMORY:], solved[-MEMORY:])
            if weights is None:
                raise check.error((state.steps, level.t), [0])
            if residual <= within:
                break
            # where the residuals of the last ones best cancel, if they change along straight lines
            x = solved[-1]
            for weight, earlier in zip(weights, solved[-1 - len(weights) : -1], strict=True):
                x = x + weight * (earlier - solved[-1])
        state = Inverted(
            clean=state.clean,
            latents=solved[-1],
            kept={**state.kept, level.index: tried[-1]},
            evaluations=state.evaluations + len(tried),
            residuals={**state.residuals, level.index: residual},
            slopes=(*state.slopes, f.float())[-2:],
        )
        yield state


def most(steps: int) -> int:
    """The evaluations that a fixed point of so many steps may take in all, by default."""
    return steps + (steps + 1) // 2


METHODS: dict[str, Inversion] = {"fixed-point": fixed_point, "ddim": ddim}


def _todo(state: Inverted, schedule: NoiseSchedule, steps: int) -> list[tuple[Level, Level]]:
    """The steps that are left, the least noisy first: a level, and the one below it."""
    return list(pairwise(schedule.levels(steps)))[::-1][state.steps :]


def _extrapolated(slopes: tuple[Tensor, ...]) -> Tensor:
    return slopes[-1] if len(slopes) == 1 else 2 * slopes[-1] - slopes[-2]


def _look_back(tried: list[Tensor], solved: list[Tensor]) -> tuple[float, list[float] | None]:
    """The last residual, relative to its iterate; weights of the earlier solutions in a mixture.

    With them the residuals best cancel. All products come from the device in one transfer. The
    weights are None if a solution is not finite.
    """
    residuals = [b - a for a, b in zip(tried, solved, strict=True)]
    changes = [residuals[-1] - r for r in residuals[:-1]]
    rows = torch.stack([tried[-1], residuals[-1], *changes]).flatten(1).double()
    products = (rows @ rows.T).cpu()
    # of float32 in float64, so they are finite if those are
    if not np.isfinite(products.numpy()).all():
        return math.nan, None
    size, missed, normal = products[0, 0], products[1, 1], products[2:, 2:]
    # residuals that are equal but for rounding leave the weights open. This keeps them small there,
    # below 5000, and is too little to be felt elsewhere
    damping = 1e-12 * normal.trace() + 1e-8 * missed
    damped = normal + damping.clamp(min=1e-300) * torch.eye(len(changes), dtype=normal.dtype)
    return (missed / size).sqrt().item(), torch.linalg.solve(damped, products[2:, 1]).tolist()
