"""The schedule against the original's tables and steps, and against its closed form."""

import math

import pytest
import torch

from anyv2v.diffusion.schedule import Schedule, ddim_step
from anyv2v.errors import InputError
from tests import golden

TABLES = golden.tensors("scheduler")
STEPPED = [
    (kind, steps, i)
    for kind in ("ddim", "inverse")
    for steps in (10, 50, 500)
    for i in range(len(TABLES[f"{kind}.{steps}.step.t"]))
]


def test_alpha_bar_equals_the_original_bit_for_bit():
    assert torch.equal(Schedule().alphas_cumprod, TABLES["alphas_cumprod"])


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
    ours = Schedule().alphas_cumprod.double()
    assert (ours - truth).abs().max() < 1e-6
    assert ours[-1] == 0


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 10, 20, 25, 30, 50, 100, 500, 999])
def test_timesteps_equal_the_original(steps):
    timesteps = Schedule().timesteps(steps)
    assert timesteps == TABLES[f"ddim.{steps}.timesteps"].tolist()
    assert timesteps[::-1] == TABLES[f"inverse.{steps}.timesteps"].tolist()


@pytest.mark.parametrize("steps", [0, -1, 1000, 5000])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=f"steps: {steps} is not a whole number from 1 to 999"):
        Schedule().timesteps(steps)


@pytest.mark.parametrize("kind, steps, i", STEPPED)
def test_steps_equal_the_original(kind, steps, i):
    schedule = Schedule()
    step = schedule.step if kind == "ddim" else schedule.inverse_step
    t = TABLES[f"{kind}.{steps}.step.t"][i].item()
    ours = step(TABLES["step.model_output"], t, TABLES["step.sample"], steps)
    assert golden.relative_error(ours, TABLES[f"{kind}.{steps}.step.prev_sample"][i]) < 2e-7


def test_a_step_keeps_the_clean_latents_and_the_noise_of_a_perfect_prediction():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, dtype=torch.float64)

    def at(level):
        return math.sqrt(level) * clean + math.sqrt(1 - level) * noise

    for level, target in ((0.0, 0.3), (0.3, 0.9), (0.9, 1.0), (0.5, 0.2), (1.0, 0.0)):
        v = math.sqrt(level) * noise - math.sqrt(1 - level) * clean
        assert golden.relative_error(ddim_step(at(level), v, level, target), at(target)) < 1e-6


def test_a_step_computes_in_float32_whatever_it_is_given():
    x, v = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).half()
    out = ddim_step(x, v, 0.4, 0.6)
    assert out.dtype == torch.float32
    assert torch.equal(out, ddim_step(x.float(), v.float(), 0.4, 0.6))
