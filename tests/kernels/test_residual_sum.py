"""Every implementation of the sum with a bias against float64."""

import pytest
import torch

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.residual_sum import TABLE, residual_sum
from tests.kernels.truth import DEVICE, DTYPES, bound, draw, guarded, names
from tests.oracles.golden import relative_error

SHAPES = [(1, 1), (7, 320), (2, 3, 5, 24), (63, 65), (1, 200, 40), (33, 1280)]


def drawn(shape, dtype, device=DEVICE):
    return [
        guarded(t.to(device, dtype))
        for t in (draw(*shape, seed=0), draw(*shape, seed=1), draw(shape[-1], seed=2))
    ]


def truth(x, branch, bias):
    return x.double() + branch.double() + bias.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names(TABLE))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_residual_sum(shape, name, dtype):
    given = drawn(shape, dtype)
    before = [t.clone() for t in given]
    ours = residual_sum(*given, impl=name)
    assert ours.dtype == dtype and ours.shape == shape
    # two sums, each rounded, at worst
    assert relative_error(ours, truth(*given)) < 2 * bound(dtype)
    assert all(map(torch.equal, given, before))


def test_fused_is_never_chosen_on_a_cpu(monkeypatch):
    given = drawn((7, 24), torch.float32, "cpu")
    assert choose("", TABLE, None, *given).name == "eager"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(gpu, "INSTALLED", True)
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        residual_sum(*given, impl="triton")


def test_fused_says_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(gpu, "INSTALLED", True)
    x, branch, bias = drawn((24, 24), torch.float32)
    for call in (
        lambda: residual_sum(x.T, branch, bias, impl="triton"),
        lambda: residual_sum(x, branch.T, bias, impl="triton"),
    ):
        with pytest.raises(Unsupported, match="not contiguous"):
            call()
    with pytest.raises(Unsupported, match="no gradients"):
        residual_sum(x, branch, bias.clone().requires_grad_(), impl="triton")
    for wrong in ((x, branch[:1], bias), (x, branch, bias[:1])):
        with pytest.raises(ValueError, match="not two of one shape and its last axis"):
            residual_sum(*wrong)


def test_gradients_equal_those_in_float64():
    ours = [t.requires_grad_() for t in drawn((7, 24), torch.float32)]
    wide = [t.detach().double().requires_grad_() for t in ours]
    (residual_sum(*ours) ** 3).sum().backward()
    (truth(*wide) ** 3).sum().backward()
    for t, w in zip(ours, wide, strict=True):
        assert relative_error(t.grad, w.grad) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(16, 64, 64, 320), (48, 8, 8, 1280), (3, 511, 128)], ids=str)
@torch.no_grad()
def test_fused_on_a_gpu_is_as_exact_as_pytorch(shape, dtype):
    given = drawn(shape, dtype)
    errors = {
        name: relative_error(residual_sum(*given, impl=name), truth(*given))
        for name in ("triton", "eager")
    }
    assert errors["triton"] <= errors["eager"] + torch.finfo(dtype).eps / 8
