"""Every implementation of linear against its definition in float64; what oneDNN refuses."""

import pytest
import torch
import torch.nn.functional as F

from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.geglu import TABLE as GEGLU_TABLE
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.linear import TABLE as LINEAR_TABLE
from anyv2v.kernels.linear import linear
from tests.oracles.golden import relative_error

NAMES = [i.name for i in LINEAR_TABLE]
SHAPES = [((3, 77, 24), 40), ((2, 4, 5, 8), 8), ((1, 1), 6), ((200, 320), 7)]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(shape, width):
    return draw(*shape, seed=0), draw(width, shape[-1], seed=1), draw(width, seed=2)


def check(ours, truth, dtype):
    assert ours.dtype == dtype and ours.shape == truth.shape
    assert relative_error(ours, truth) < (
        1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    )


def takes(table, name, dtype):
    implementation = next(i for i in table if i.name == name)
    if implementation.refuses(torch.zeros(1, 8, dtype=dtype), torch.zeros(8, 8, dtype=dtype), None):
        pytest.skip(f"{name} does not take {dtype}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape, width", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_linear(shape, width, with_bias, name, dtype):
    takes(LINEAR_TABLE, name, dtype)
    x, weight, bias = (y.to(dtype) for y in drawn(shape, width))
    truth = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    check(linear(x, weight, bias if with_bias else None, impl=name), truth, dtype)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_inputs_with_strides(name):
    x, weight, bias = (y.float() for y in drawn((6, 5, 16), 9))
    strided = x.transpose(0, 1)
    truth = strided.contiguous().double() @ weight.double().T + bias.double()
    check(linear(strided, weight, bias, impl=name), truth, torch.float32)


def test_onednn_refuses_what_it_cannot_do(monkeypatch):
    x, weight, bias = (y.float() for y in drawn((2, 8), 8))
    with pytest.raises(Unsupported, match="not torch.float64"):
        linear(x.double(), weight.double(), None, impl="onednn")
    with pytest.raises(Unsupported, match="no gradients"):
        geglu(x, weight.clone().requires_grad_(), bias, impl="onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="switched off"):
        linear(x, weight, bias, impl="onednn")
    assert linear(x, weight, bias).shape == (2, 8)


def test_the_first_of_several_names_that_can():
    x, weight, bias = (y.float() for y in drawn((2, 8), 8))
    assert choose("linear", LINEAR_TABLE, "onednn,eager", x, weight, bias).name == "onednn"
    x, weight, bias = x.double(), weight.double(), bias.double()
    assert choose("linear", LINEAR_TABLE, "onednn,eager", x, weight, bias).name == "eager"
    with pytest.raises(Unsupported, match="triton cannot .*; onednn cannot "):
        geglu(x, weight, bias, impl="triton,onednn")


def test_a_cpu_takes_onednn():
    """Its operators are private to torch: if they go, this says so and not a slow benchmark."""
    x, weight, bias = (y.float() for y in drawn((2, 8), 8))
    for table in (LINEAR_TABLE, GEGLU_TABLE):
        assert choose("op", table, None, x, weight, bias).name == "onednn"


@pytest.mark.parametrize("name", ["onednn", "eager"])
def test_gradients_equal_those_in_float64(name):
    inputs = [y.float().requires_grad_() for y in drawn((3, 4, 6), 6)]
    truths = [y.detach().double().requires_grad_() for y in inputs]
    x, weight, bias = inputs
    geglu(linear(x, weight, bias, impl=name), weight, bias).pow(2).sum().backward()
    x, weight, bias = truths
    value, gate = F.linear(F.linear(x, weight, bias), weight, bias).chunk(2, dim=-1)
    (value * F.gelu(gate)).pow(2).sum().backward()
    for ours, truth in zip(inputs, truths, strict=True):
        assert relative_error(ours.grad, truth.grad) < 1e-6
