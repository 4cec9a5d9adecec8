"""Every implementation of group_norm_silu against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Unsupported
from anyv2v.kernels.group_norm_silu import TABLE, group_norm_silu
from tests.kernels.truth import DEVICE, DTYPES, bound, draw, guarded, names
from tests.oracles.golden import relative_error

NAMES = names(TABLE)
EPS = 0.1  # large enough for its place in the formula to show


def drawn(*shape, shifts=0):
    """Far from zero and different row by row, so that what is mixed up shows."""
    rows, c = shape[0], shape[-1]
    scale = torch.arange(1, rows + 1).double().reshape(-1, *[1] * (len(shape) - 1))
    x = 3 + scale * draw(*shape, seed=0)
    shift = draw(shifts, c, seed=3) if shifts else None
    return x, draw(c, seed=1), draw(c, seed=2), shift


def truth(x, weight, bias, shift, groups, silu=True):
    if shift is not None:
        repeated = shift.repeat_interleave(len(x) // len(shift), dim=0)
        x = x + repeated.reshape(len(x), *[1] * (x.ndim - 2), -1)
    y = F.group_norm(x.movedim(-1, 1), groups, weight, bias, EPS).movedim(1, -1)
    return F.silu(y) if silu else y


def check(shape, groups, shifts, name, dtype=torch.float32, silu=True):
    x, weight, bias, shift = (
        None if t is None else guarded(t.to(DEVICE, dtype)) for t in drawn(*shape, shifts=shifts)
    )
    wide = [None if t is None else t.double() for t in (x, weight, bias, shift)]
    ours = group_norm_silu(x, weight, bias, groups, EPS, silu=silu, shift=shift, impl=name)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, truth(*wide, groups, silu)) < 3 * bound(dtype)


@pytest.fixture(params=["whole", "split"])
def route(request, monkeypatch):
    """Both ways that the fused one can go, whatever the size."""
    pytest.importorskip("triton")
    from anyv2v.kernels.group_norm_silu import fused

    monkeypatch.setattr(fused, "WHOLE", 2**30 if request.param == "whole" else 0)


@pytest.mark.parametrize("n", [1, 7, 16, 63, 77, 145, 200])
@pytest.mark.parametrize("c, groups", [(320, 32), (24, 8)])
@torch.no_grad()
def test_fused_on_awkward_lengths(route, n, c, groups):
    check((2, n, c), groups, 1, "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("silu", [True, False])
@torch.no_grad()
def test_fused_in_half_types(route, dtype, silu):
    check((4, 77, 24), 8, 2, "triton", dtype, silu)


@pytest.mark.parametrize("shape, groups", [((4, 3, 5, 2, 24), 8), ((1, 145, 640), 32)])
@pytest.mark.parametrize("shifts", [0, 1])
@torch.no_grad()
def test_fused_on_more_axes_and_widths(route, shape, groups, shifts):
    check(shape, groups, shifts, "triton")


@torch.no_grad()
def test_moments_of_many_parts_are_combined(monkeypatch):
    pytest.importorskip("triton")
    from anyv2v.kernels.group_norm_silu import fused

    monkeypatch.setattr(fused, "WHOLE", 0)
    monkeypatch.setattr(fused, "POSITIONS", 16)
    monkeypatch.setattr(fused, "_parts_at_once", lambda channels: 4)
    check((2, 200, 24), 8, 1, "triton")  # 13 parts, the last of 8 positions


@torch.no_grad()
def test_a_mean_far_from_zero_costs_no_digits(route):
    """The sum of squares minus the square of the sum would lose all of them here."""
    x = 1000 + draw(1, 200, 24, seed=0).float().to(DEVICE)
    weight, bias = torch.ones(24, device=DEVICE), torch.zeros(24, device=DEVICE)
    ours = group_norm_silu(x, weight, bias, 8, EPS, silu=False, impl="triton")
    wide = truth(x.double(), weight.double(), bias.double(), None, 8, silu=False)
    assert relative_error(ours, wide) < 1e-4  # 1000 is 2^13 times the spacing of floats at 1


@torch.no_grad()
def test_equal_numbers_give_the_bias(route):
    bias = draw(24, seed=0).float().to(DEVICE)
    x = torch.full((2, 77, 24), 5.0, device=DEVICE)
    ours = group_norm_silu(x, torch.ones_like(bias), bias, 8, EPS, impl="triton")
    assert relative_error(ours, F.silu(bias).expand_as(x)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "triton"])
@pytest.mark.parametrize("shape, groups, shifts", [((4, 7, 5, 24), 8, 2), ((1, 63, 320), 32, 0)])
@pytest.mark.parametrize("silu", [True, False])
def test_the_others_equal_the_definition(shape, groups, shifts, silu, name, dtype):
    check(shape, groups, shifts, name, dtype, silu)


def test_automatic_choice_on_a_cpu_has_gradients():
    wide = list(drawn(4, 7, 5, 24, shifts=2))
    ours = [t.float().requires_grad_() for t in wide]
    wide = [t.requires_grad_() for t in wide]
    x, weight, bias, shift = ours
    group_norm_silu(x, weight, bias, 8, EPS, shift=shift).square().sum().backward()
    truth(*wide, 8).square().sum().backward()
    for t, w in zip(ours, wide, strict=True):
        assert relative_error(t.grad, w.grad) < 1e-5


def test_fused_says_what_it_cannot_do(monkeypatch):
    pytest.importorskip("triton")
    x = drawn(2, 7, 24)[0].float().to(DEVICE)

    def refused(because, x):
        weight = torch.ones(24, device=x.device)
        assert group_norm_silu(x, weight, weight, 8, EPS).shape == x.shape
        with pytest.raises(Unsupported, match=f"triton cannot run this call: .*{because}"):
            group_norm_silu(x, weight, weight, 8, EPS, impl="triton")

    refused("not contiguous", torch.ones(2, 24, 7, device=DEVICE).transpose(1, 2))
    refused("more than its grid has", torch.ones(65536, 1, 24, device=DEVICE))
    refused("no gradients", x.clone().requires_grad_())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    refused("needs a CUDA device", x.cpu())
    monkeypatch.setattr(gpu, "INSTALLED", False)
    refused("triton is not installed", x)


def test_wrong_shapes_are_refused():
    x, weight, bias, _ = drawn(2, 7, 24)
    with pytest.raises(ValueError, match="24 channels cannot be 5 groups"):
        group_norm_silu(x, weight, bias, 5, EPS)
    for wrong in (torch.zeros(3, 24), torch.zeros(1, 23)):
        with pytest.raises(ValueError, match="shifts .* are not for rows"):
            group_norm_silu(x, weight, bias, 8, EPS, shift=wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape, shifts",
    [
        pytest.param((16, 64, 64, 320), 1, id="frames"),
        pytest.param((1, 16, 4096, 320), 0, id="video"),
        pytest.param((48, 16, 16, 2560), 3, id="skips"),
        pytest.param((16, 8, 8, 1280), 0, id="deep"),
        pytest.param((3, 5, 7, 96), 0, id="odd"),
    ],
)
@torch.no_grad()
def test_fused_on_a_gpu_is_as_exact_as_pytorch(shape, shifts, dtype):
    x, weight, bias, shift = (
        None if t is None else t.to("cuda", dtype) for t in drawn(*shape, shifts=shifts)
    )
    wide = truth(*(None if t is None else t.double() for t in (x, weight, bias, shift)), 32)
    errors = {
        name: relative_error(
            group_norm_silu(x, weight, bias, 32, EPS, shift=shift, impl=name), wide
        )
        for name in ("triton", "eager")
    }
    assert errors["triton"] <= 2 * errors["eager"] + torch.finfo(dtype).eps / 8
