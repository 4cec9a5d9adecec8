"""Every implementation of layer normalisation against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.layer_norm import ADD_TABLE, TABLE, add_layer_norm, layer_norm
from tests.kernels.truth import DEVICE, DTYPES, bound, draw, guarded, names
from tests.oracles.golden import relative_error

NAMES = names(TABLE)
SHAPES = [(1, 24), (7, 320), (3, 21, 640), (77, 40), (145, 24), (200, 1280)]
EPS = 0.1


def drawn(shape, dtype, device=DEVICE):
    c = shape[-1]
    return [
        guarded(t.to(device, dtype))
        for t in (2 + draw(*shape, seed=0), draw(*shape, seed=1), draw(c, seed=2), draw(c, seed=3))
    ]


def truth(x, weight, bias):
    return F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_layer_norm(shape, name, dtype):
    x, _, weight, bias = drawn(shape, dtype)
    ours = layer_norm(x, weight, bias, EPS, impl=name)
    assert ours.dtype == dtype and ours.shape == x.shape
    assert relative_error(ours, truth(x, weight, bias)) < bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@torch.no_grad()
def test_the_sum_is_kept_and_normalised(shape, name, dtype):
    x, branch, weight, bias = drawn(shape, dtype)
    total, ours = add_layer_norm(x, branch, weight, bias, EPS, impl=name)
    assert total.dtype == ours.dtype == dtype and total.shape == ours.shape == x.shape
    assert relative_error(total, x.double() + branch.double()) < bound(dtype)
    # of the sum as it was rounded
    assert relative_error(ours, truth(total, weight, bias)) < bound(dtype)


@pytest.mark.parametrize("name", names(ADD_TABLE))
@torch.no_grad()
def test_the_norm_is_of_the_sum_as_it_was_rounded(name):
    """Among numbers of 2048 and more float16 has only every second one."""
    x = torch.full((5, 40), 2048.0, dtype=torch.float16, device=DEVICE)
    branch, ones = draw(5, 40, seed=0).to(x), torch.ones_like(x[0])
    total, ours = add_layer_norm(x, 3 * branch, ones, ones, EPS, impl=name)
    assert relative_error(ours, truth(total, ones, ones)) < bound(torch.float16)
    assert relative_error(ours, truth(x + 3 * branch.double(), ones, ones)) > 0.1


def test_fused_is_chosen_for_the_sum_alone_and_never_on_a_cpu(monkeypatch):
    x, branch, weight, bias = drawn((7, 24), torch.float32, "cpu")
    assert choose("", TABLE, None, x, weight, bias, EPS).name == "eager"
    assert choose("", ADD_TABLE, None, x, branch, weight, bias, EPS).name == "eager"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(gpu, "INSTALLED", True)
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        add_layer_norm(x, branch, weight, bias, impl="triton")


def test_fused_says_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(gpu, "INSTALLED", True)
    x, branch, weight, bias = drawn((24, 24), torch.float32)
    for call in (
        lambda: layer_norm(x.T, weight, bias, impl="triton"),
        lambda: add_layer_norm(x, branch.T, weight, bias, impl="triton"),
    ):
        with pytest.raises(Unsupported, match="not contiguous"):
            call()
    wide = torch.zeros(1, 8193, device=DEVICE)
    with pytest.raises(Unsupported, match="8193 numbers are more"):
        layer_norm(wide, wide[0], wide[0], impl="triton")
    with pytest.raises(Unsupported, match="no gradients"):
        layer_norm(x, weight.clone().requires_grad_(), bias, impl="triton")
    with pytest.raises(ValueError, match="not of one shape"):
        add_layer_norm(x, branch[:1], weight, bias)


def test_gradients_equal_those_in_float64():
    ours = [t.requires_grad_() for t in drawn((7, 24), torch.float32)]
    wide = [t.detach().double().requires_grad_() for t in ours]
    total, y = add_layer_norm(*ours, EPS)
    (total.square().sum() + (y**3).sum()).backward()
    total = wide[0] + wide[1]
    (total.square().sum() + (truth(total, *wide[2:]) ** 3).sum()).backward()
    for t, w in zip(ours, wide, strict=True):
        assert relative_error(t.grad, w.grad) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(65536, 320), (16384, 640), (4096, 1280), (77, 1024)], ids=str)
@torch.no_grad()
def test_fused_on_a_gpu_is_as_exact_as_pytorch(shape, dtype):
    x, branch, weight, bias = drawn(shape, dtype)
    errors = {}
    for name in ("triton", "eager"):
        total, y = add_layer_norm(x, branch, weight, bias, EPS, impl=name)
        assert torch.equal(total, x + branch)
        errors[name] = relative_error(y, truth(total, weight, bias))
    assert errors["triton"] <= 2 * errors["eager"] + torch.finfo(dtype).eps / 8
