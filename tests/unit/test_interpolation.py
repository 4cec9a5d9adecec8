"""Interpolation of latents: exact ends, straight lines, great circles."""

import math

import numpy as np
import pytest
import torch

from anyv2v.diffusion.interpolation import interpolate
from anyv2v.errors import InputError

SHAPE = (1, 4, 6, 8, 8)


def noise(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norms(x: torch.Tensor) -> torch.Tensor:
    """Of each latent frame, float64 (f,)."""
    return x.double().square().sum((0, 1, 3, 4)).sqrt()


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a.double() * b).sum((0, 1, 3, 4)) / (norms(a) * norms(b))).acos()


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_of_a_curve_are_exact_and_distances_grow(spherical):
    source, edit = noise(0), noise(1)
    curve = torch.linspace(0, 1, 6)
    mixed = interpolate(source, edit, curve, spherical)
    assert mixed.dtype == torch.float32
    assert mixed[:, :, 0].equal(source[:, :, 0]) and mixed[:, :, 5].equal(edit[:, :, 5])
    same = [noise(i, (1, 4, 1, 8, 8)).expand(SHAPE) for i in (0, 1)]
    distances = norms(interpolate(*same, curve, spherical) - same[0])
    assert (distances.diff() > 0.5).all()
    for value, expected in ((0, source), (1, edit), (1.0, edit), (np.float32(0), source)):
        assert interpolate(source, edit, value, spherical).equal(expected)


def test_a_straight_line_is_the_weighted_mean():
    a, b = noise(0), noise(1)
    curve = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]
    expected = np.stack(
        [(1 - s) * a.double()[:, :, i] + s * b.double()[:, :, i] for i, s in enumerate(curve)], 2
    )
    np.testing.assert_allclose(interpolate(a, b, curve).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        interpolate(a, b, 0.5).numpy(), ((a.double() + b.double()) / 2).numpy(), atol=1e-6
    )


def test_a_great_circle_keeps_the_norm_and_divides_the_angle():
    a, b = noise(0), noise(1)
    b = (b.double() / norms(b).view(1, 1, -1, 1, 1) * norms(a).view(1, 1, -1, 1, 1)).float()
    for share in (0.2, 0.5, 0.7):
        mixed = interpolate(a, b, share, spherical=True)
        torch.testing.assert_close(norms(mixed), norms(a), rtol=1e-6, atol=0)
        torch.testing.assert_close(angles(a, mixed), share * angles(a, b), rtol=1e-5, atol=0)
        torch.testing.assert_close(angles(mixed, b), (1 - share) * angles(a, b), rtol=1e-5, atol=0)
    # a mean of noise is shorter
    assert (norms(interpolate(a, b, 0.5)) < 0.8 * norms(a)).all()


def test_a_quarter_turn_in_closed_form():
    """The directions (1, 0) and (0, 1) with norms 3 and 5: halfway is 45 degrees, norm 4."""
    a, b = torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1)
    a[0, 0], b[0, 1] = 3, 5
    half = interpolate(a, b, 0.5, spherical=True).flatten()
    assert half.tolist() == pytest.approx([4 / math.sqrt(2)] * 2, rel=1e-6)
    third = interpolate(a, b, 1 / 3, spherical=True).flatten()
    length = 3 + 2 / 3
    assert third.tolist() == pytest.approx(
        [length * math.cos(math.pi / 6), length * math.sin(math.pi / 6)], rel=1e-6
    )


def test_parallel_and_zero_vectors_are_finite():
    a = noise(0)
    torch.testing.assert_close(interpolate(a, a, 0.3, spherical=True), a)
    torch.testing.assert_close(interpolate(a, 2 * a, 0.5, spherical=True), 1.5 * a)
    zero = torch.zeros(SHAPE)
    assert interpolate(zero, zero, 0.5, spherical=True).equal(zero)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (1.5, "not between 0 and 1"),
        (math.nan, "not between 0 and 1"),
        ([0, 1], "curve of 6 numbers"),
        ("half", "curve of 6 numbers"),
    ],
)
def test_refuses_a_wrong_strength(strength, message):
    with pytest.raises(InputError, match=message):
        interpolate(noise(0), noise(1), strength)


def test_refuses_what_has_no_path_between():
    with pytest.raises(InputError, match="other: .* is not the shape"):
        interpolate(noise(0), noise(1)[:, :, :3], 0.5)
    with pytest.raises(InputError, match="opposite"):
        interpolate(noise(0), -noise(0), 0.5, spherical=True)
