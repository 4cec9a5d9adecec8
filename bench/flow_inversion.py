"""Methods of inversion on Wan's noise levels, where the velocity of the flow is known exactly.

The clips are points of a mixture of 64 Gaussians in 256 dimensions. Each spreads by 0.5 in 16
directions of its own, and by little (`OFF`) in the others, which the velocity takes for noise. The
third case adds noise to the clips that the field does not know. The velocity is a formula, in
float64; latents are float32, as in the product. A field is drawn from a seed, with four clips;
figures are geometric means over fields (norms: means) with 95 % bootstrap intervals.

Before anything is measured the formula is compared with the gradient of the log density, and what
the product reports of its inversion is recomputed through the steps of sampling.

Methods that are measured, in 50 steps unless the name says otherwise:
- euler: plain inversion by Euler's method, the product's method "ddim".
- rf-solver (arXiv 2411.04746): the midpoint rule, two evaluations a step; it goes back by itself.
- fireflow (arXiv 2412.07517): the same with the midpoint's velocity of the step before, one
  evaluation a step; it goes back by itself.
- uni-inv (arXiv 2504.13109): one evaluation a step, at the point that the velocity before leads to;
  like all others it goes back by Euler's method.
- fixed-point, all steps: the product's, with nothing done about the cleanest steps.
- fixed-point above euler: Euler's method in the two cleanest steps, the fixed point above.
- fixed-point (default): the product's with the settings of Wan: noise is drawn for the cleanest
  steps. "3 each": with three evaluations a step in place of one and a half.

`latent_error` is that of the round trip to the latents where the method began to solve: the clean
ones, or those above the steps that it does not solve. `latent_error_most` is that of the worst
field. `noise_norm` is 1 for the model's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor

from anyv2v.backbones.wan.defaults import PUBLISHED_SETTINGS
from anyv2v.backbones.wan.schedule import FlowSchedule
from anyv2v.diffusion.inversion import InversionState, ddim, default_budget, fixed_point
from anyv2v.diffusion.schedule import Level, advance
from bench.core import Bench, Wrong
from bench.inversion import geometric, interval

SCHEDULE = FlowSchedule(5.0)
STEPS = 50
OFF = {"0.2": (0.2, 0.0), "0.05": (0.05, 0.0), "0.05, clips with noise of 0.1": (0.05, 0.1)}
"""Name of a case -> (spread of a Gaussian in most directions, noise that is added to clips)."""
FIELDS = 6
"""The number of fields; the seeds count from 0."""
DIMENSIONS, GAUSSIANS, DIRECTIONS, SPREAD, CLIPS = 256, 64, 16, 0.5, 4


class Field:
    """The exact velocity of a flow from noise to a mixture of Gaussians, and some of its clips."""

    def __init__(self, seed: int, off: float, extra: float = 0.0):
        """Draws the field from `seed`, and its clips, with noise of standard deviation `extra`."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.off, self.evaluations = off, 0
        self.means = draw(GAUSSIANS, DIMENSIONS)
        self.wide = torch.linalg.qr(draw(GAUSSIANS, DIMENSIONS, DIRECTIONS)).Q
        of = torch.randint(GAUSSIANS, (CLIPS,), generator=generator)
        along = (self.wide[of] @ draw(CLIPS, DIRECTIONS, 1))[:, :, 0]
        clips = self.means[of] + off * draw(CLIPS, DIMENSIONS)
        clips += math.sqrt(SPREAD**2 - off**2) * along + extra * draw(CLIPS, DIMENSIONS)
        self.clean = clips.float().view(1, CLIPS, 1, 16, 16)
        """(1, 4, 1, 16, 16) float32: four clips, as the channels of one."""
        self.noise = draw(*self.clean.shape).float()

    def __call__(self, level: Level, latents: Tensor) -> Tensor:
        """Return the velocity, the mean of noise - clean at these latents, float64."""
        self.evaluations += 1
        alpha, sigma = level.alpha, level.sigma
        from_means, along, shares = self._parts(level, latents.double().view(CLIPS, DIMENSIONS))
        narrow, wide = self._variances(level)
        # C^-1 (x - alpha mean), C the covariance of a Gaussian's noisy clips, averaged by shares
        solved = (shares[:, :, None] * from_means).sum(1) / narrow + torch.einsum(
            "nk,nkr,kdr->nd", shares, along * (1 / wide - 1 / narrow), self.wide
        )
        within = self.off**2 * solved + (SPREAD**2 - self.off**2) * torch.einsum(
            "nk,nkr,kdr->nd", shares, along / wide, self.wide
        )
        clean = shares @ self.means + alpha * within
        return (sigma * solved - clean).view_as(latents)

    def log_density(self, level: Level, x: Tensor) -> Tensor:
        """Return the log density, but for a constant, of noisy clips x (n, 256)."""
        from_means, along, _ = self._parts(level, x)
        return torch.logsumexp(self._exponents(level, from_means, along), 1)

    def _variances(self, level: Level) -> tuple[float, float]:
        """Variances of the noisy clips of a Gaussian, in its narrow and in its wide directions."""
        return tuple(level.alpha**2 * s**2 + level.sigma**2 for s in (self.off, SPREAD))

    def _parts(self, level: Level, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x less each mean, (n, k, d); the same in wide directions; each Gaussian's share of x."""
        from_means = x[:, None] - level.alpha * self.means
        along = torch.einsum("nkd,kdr->nkr", from_means, self.wide)
        return from_means, along, self._exponents(level, from_means, along).softmax(1)

    def _exponents(self, level: Level, from_means: Tensor, along: Tensor) -> Tensor:
        narrow, wide = self._variances(level)
        squares = from_means.square().sum(-1) / narrow
        return -0.5 * (squares + along.square().sum(-1) * (1 / wide - 1 / narrow))


@dataclass(frozen=True)
class Inverted:
    """What a method makes of a field's clips."""

    noisiest: Tensor
    """The latents at the noisiest level."""
    error: float
    """Relative error of the latents where the method began to solve, there and back."""
    evaluations: int
    """Evaluations of the field on the way there."""


Method = Callable[[Field], Inverted]


def there_and_back(
    field: Field, noisiest: Tensor, wanted: Tensor, levels: tuple[Level, ...]
) -> Inverted:
    """Return to `wanted`, the latents at the last of `levels`, by Euler's method."""
    spent, x = field.evaluations, noisiest
    for level, below in pairwise(levels):
        x = advance(x, field(level, x), SCHEDULE.coefficients(level, below))
    return Inverted(noisiest, relative(x, wanted), spent)


def product(steps: int = STEPS, per_step: float = 1.5, **settings: object) -> Method:
    """The fixed point of the product, in so many steps; settings: arguments of `fixed_point`.

    per_step: evaluations that it may take, on average; 1.5 is the default.
    """

    def invert(field: Field) -> Inverted:
        begin = InversionState.start(field.clean)
        budget = default_budget(steps, per_step)
        *_, last = fixed_point(
            field, begin, SCHEDULE, steps, budget=budget, noise=field.noise, **settings
        )
        solved = max(set(last.residuals) - set(last.offsets))
        levels = SCHEDULE.levels(steps)[: solved + 2]
        wanted = last.trajectory.get(solved + 1, field.clean)
        return there_and_back(field, last.trajectory[0], wanted, levels)

    return invert


def euler(steps: int) -> Method:
    """Euler's method in so many steps, and back in 50."""

    def invert(field: Field) -> Inverted:
        *_, last = ddim(field, InversionState.start(field.clean), SCHEDULE, steps)
        return there_and_back(field, last.trajectory[0], field.clean, SCHEDULE.levels(STEPS))

    return invert


def above_euler(field: Field) -> Inverted:
    """Euler's method in the two cleanest steps, the fixed point above."""
    *_, begin = islice(ddim(field, InversionState.start(field.clean), SCHEDULE, STEPS), 2)
    *_, last = fixed_point(field, begin, SCHEDULE, STEPS, TOLERANCE)
    levels = SCHEDULE.levels(STEPS)[:-2]
    return there_and_back(field, last.trajectory[0], begin.latents, levels)


def uni_inv(field: Field) -> Inverted:
    """One evaluation a step, at the point that the velocity of the step before leads to."""
    levels, x = SCHEDULE.levels(STEPS)[::-1], field.clean
    velocity = field(levels[0], x)
    for below, level in pairwise(levels):
        rise = level.sigma - below.sigma
        velocity = field(level, x + rise * velocity)
        x = x + rise * velocity
    return there_and_back(field, x.float(), field.clean, SCHEDULE.levels(STEPS))


def midpoints(steps: int, reuse: bool) -> Method:
    """RF-Solver in so many steps; reuse: FireFlow, with the velocity of the midpoint before."""

    def go(field: Field, x: Tensor, levels: tuple[Level, ...]) -> Tensor:
        velocity = None
        for start, end in pairwise(levels):
            rise, sigma = end.sigma - start.sigma, (start.sigma + end.sigma) / 2
            if velocity is None or not reuse:
                velocity = field(start, x)
            middle = Level(start.index, 1000 * sigma, 1 - sigma, sigma)
            velocity = field(middle, x + rise / 2 * velocity)
            x = x + rise * velocity
        return x

    def invert(field: Field) -> Inverted:
        levels = SCHEDULE.levels(steps)
        noisiest = go(field, field.clean, levels[::-1])
        spent = field.evaluations
        return Inverted(noisiest, relative(go(field, noisiest, levels), field.clean), spent)

    return invert


TOLERANCE = PUBLISHED_SETTINGS["tolerance"]
DEFAULT = {"tolerance": TOLERANCE, "solved_from": PUBLISHED_SETTINGS["solved_from"]}
METHODS: dict[str, Method] = {
    "euler 50": euler(50),
    "euler 500": euler(500),
    "rf-solver 25": midpoints(25, reuse=False),
    "rf-solver 50": midpoints(50, reuse=False),
    "fireflow": midpoints(50, reuse=True),
    "uni-inv": uni_inv,
    "fixed-point, all steps": product(tolerance=TOLERANCE),
    "fixed-point above euler": above_euler,
    "fixed-point (default)": product(**DEFAULT),
    **{f"fixed-point (default), {n} steps": product(n, **DEFAULT) for n in (10, 25, 100)},
    **{f"fixed-point, {n} steps, 3 each": product(n, 3.0, **DEFAULT) for n in (10, 25)},
}
"""Name -> method."""


def relative(x: Tensor, wanted: Tensor) -> float:
    """Return the relative error of x."""
    return ((x.double() - wanted.double()).norm() / wanted.double().norm()).item()


def noise_norm(field: Field, noisiest: Tensor) -> float:
    """Return the norm of the noise in latents at the noisiest level, as `Source.noise_norm`."""
    level = SCHEDULE.levels(1)[0]
    noise = (noisiest.double() - level.alpha * field.clean) / level.sigma
    return noise.square().mean().sqrt().item()


def check(field: Field) -> list[str]:
    """List what is wrong with a field's velocity, or with what the product says of itself."""
    faults, levels = [], SCHEDULE.levels(STEPS)
    for level in levels[:: STEPS // 5]:
        x = level.alpha * field.clean.double() + level.sigma * field.noise.double()
        x = x.view(CLIPS, DIMENSIONS).requires_grad_()
        (score,) = torch.autograd.grad(field.log_density(level, x).sum(), x)
        noise = -level.sigma * score
        clean = (x - level.sigma * noise) / level.alpha
        # the weight of the clean clips at the first level is 1e-6, by which rounding is divided
        if (off := relative(field(level, x), (noise - clean).detach())) > 1e-6:
            faults.append(f"sigma {level.sigma:.3g}: the velocity is off by {off:.2g}")
    field.evaluations = 0
    *_, last = fixed_point(
        field, InversionState.start(field.clean), SCHEDULE, STEPS, noise=field.noise, **DEFAULT
    )
    if field.evaluations != last.evaluations:
        faults.append(f"{last.evaluations} evaluations reported, {field.evaluations} counted")
    latents = field.clean.double()
    for level, below in reversed([*pairwise(levels)]):
        x = last.trajectory[level.index].double()
        missed = latents - x - (below.sigma - level.sigma) * field(level, x)
        found, reported = (missed.norm() / x.norm()).item(), last.residuals[level.index]
        if abs(found - reported) > 1e-6 + 1e-2 * reported:
            faults.append(f"step {level.index}: residual {found:.3g}, reported {reported:.3g}")
        drawn = level.index in last.offsets
        if drawn and relative(last.offsets[level.index], missed) > 1e-5:
            faults.append(f"step {level.index}: the offset is not what the step misses")
        latents = x if drawn else x + missed
    return faults


def run(bench: Bench) -> None:
    """Measure the subject "flow_inversion"."""
    for case, (off, extra) in OFF.items():
        if faults := check(Field(0, off, extra)):
            raise Wrong("; ".join(faults))
        for name, method in METHODS.items():
            evaluations, facts = measure(method, off, extra)
            bench.counted(f"spread {case}", name, evaluations=evaluations, facts=facts)
            print(f"  {case:30} {name:32} {evaluations:.1f} evaluations, {facts}", flush=True)


def measure(method: Method, off: float, extra: float) -> tuple[float, dict[str, float]]:
    """Average evaluations, errors and norms over the fields."""
    found = []
    for seed in range(FIELDS):
        field = Field(seed, off, extra)
        made = method(field)
        found.append((made.evaluations, made.error, noise_norm(field, made.noisiest)))
    evaluations, errors, norms = (list(column) for column in zip(*found, strict=True))
    bounds = ("", "_low", "_high")[: 1 if FIELDS == 1 else 3]
    facts = {f"latent_error{x}": v for x, v in zip(bounds, geometric(errors), strict=False)}
    facts |= {f"noise_norm{x}": v for x, v in zip(bounds, interval(norms), strict=False)}
    facts |= {"latent_error_most": max(errors), "most_evaluations": max(evaluations)}
    return interval(evaluations)[0], {k: float(f"{v:.4g}") for k, v in facts.items()}
