"""Every implementation of linear against its definition in float64; what oneDNN refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.geglu import TABLE as GEGLU_TABLE
from anyv2v.kernels.geglu import geglu
from anyv2v.kernels.linear import TABLE as LINEAR_TABLE
from anyv2v.kernels.linear import fp8, linear
from tests.golden import relative_error

# fp8 has tests of its own
EXACT = [i.name for i in LINEAR_TABLE if i.name != "fp8"]
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
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape, width", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_linear(shape, width, with_bias, name, dtype):
    takes(LINEAR_TABLE, name, dtype)
    x, weight, bias = (y.to(dtype) for y in drawn(shape, width))
    truth = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    check(linear(x, weight, bias if with_bias else None, impl=name), truth, dtype)


@pytest.mark.parametrize("name", EXACT)
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


def e4m3(x):
    """The nearest number of three bits of mantissa and exponents from -6 up, ties to even."""
    spacing = torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=2.0**-6))) - 3)
    return (x / spacing).round() * spacing


def in_8_bits(x, weight, bias):
    """The product of numbers rounded as the README of linear says, in float64."""
    x_scale, w_scale = (y.abs().amax(-1, keepdim=True) / 448 for y in (x, weight))
    # as the implementation has them, in float32
    x_scale, w_scale = x_scale.float().double(), w_scale.float().double()
    rounded = e4m3((x.float() / x_scale.float()).double()) * x_scale
    return rounded @ (e4m3((weight.float() / w_scale.float()).double()) * w_scale).T + bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, width", [((3, 77, 32), 48), ((5, 320), 16), ((1, 16), 16)])
@torch.no_grad()
def test_fp8_rounds_as_it_says_and_loses_no_more(shape, width, dtype):
    x, weight, bias = (y.to(dtype) for y in drawn(shape, width))
    x = x.transpose(0, -2).contiguous().transpose(0, -2)  # strides
    ours = linear(x, weight, bias, impl="fp8")
    x, weight, bias = x.double(), weight.double(), bias.double()
    check(ours, in_8_bits(x, weight, bias), dtype)
    if x.numel() > 1000:
        # each factor is off by 2.6 % in the mean
        lost = relative_error(ours - bias, x @ weight.T)
        assert 0.02 < lost < 0.05


@torch.no_grad()
def test_fp8_takes_zeros_and_large_and_small_rows():
    x = torch.stack([torch.zeros(16), torch.full((16,), 3e4), torch.full((16,), 1e-30)])
    weight = torch.eye(16)
    assert relative_error(linear(x, weight, None, impl="fp8"), x) < 1e-6
    assert relative_error(linear(x[2:], weight, None, impl="fp8"), x[2:]) < 1e-6


@torch.no_grad()
def test_fp8_rounds_a_weight_once_and_again_when_it_changes(monkeypatch):
    counted, rounded = [], fp8.rounded
    monkeypatch.setattr(fp8, "rounded", lambda x: counted.append(x.shape) or rounded(x))
    x, weight = torch.ones(2, 16), torch.eye(16).repeat(2, 1)
    for _ in range(3):
        assert linear(x, weight, None, impl="fp8")[0, 0] == 1
    assert counted.count(weight.shape) == 1
    weight.mul_(2)
    assert linear(x, weight, None, impl="fp8")[0, 0] == 2
    assert counted.count(weight.shape) == 2
    with torch.inference_mode():
        fresh = torch.eye(16)
        assert linear(x, fresh, None, impl="fp8")[0, 0] == 1


def test_fp8_is_only_for_who_names_it_and_refuses_the_rest(monkeypatch):
    x, weight, bias = (y.float() for y in drawn((2, 16), 16))
    assert choose("linear", LINEAR_TABLE, None, x.half(), weight.half(), None).name == "eager"
    for args, reason in (
        ((x[:, :8], weight[:, :8], bias), r"\(16, 8\) is not made of multiples of 16"),
        ((x, weight[:8], bias[:8]), r"\(8, 16\) is not made of multiples of 16"),
        ((x.double(), weight.double(), None), "float64 is not float16, bfloat16 or float32"),
        ((x, weight.half(), None), "differ in dtype"),
        ((x, weight, bias.clone().requires_grad_()), "no gradients"),
        ((x[:0], weight, None), "empty"),
    ):
        with pytest.raises(Unsupported, match=f"fp8 cannot run this call: .*{reason}"):
            linear(*args, impl="fp8")
    # the first of several that can
    assert choose("linear", LINEAR_TABLE, "fp8,eager", x, weight, None).name == "fp8"
    assert choose("linear", LINEAR_TABLE, "fp8,eager", x, weight[:8], None).name == "eager"
    with pytest.raises(Unsupported, match="fp8 cannot .*; onednn cannot "):
        linear(x.double(), weight.double(), None, impl="fp8,onednn")
    with FakeTensorMode():
        there = torch.empty(2, 16, device="cuda"), torch.empty(16, 16, device="cuda")
        assert "not float16 or bfloat16" in fp8.refuses(*there, None)
        there = [y.half() for y in there]
        assert fp8.refuses(*there, None) is None
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
        assert "older than compute capability 8.9" in fp8.refuses(*there, None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows, c, width", [(65536, 320, 320), (4096, 1280, 10240), (77, 32, 48)])
@torch.no_grad()
def test_fp8_on_a_gpu(rows, c, width, dtype):
    x, weight, bias = (y.to("cuda", dtype) for y in drawn((rows, c), width))
    if reason := fp8.refuses(x, weight, bias):
        pytest.skip(reason)
    ours = linear(x, weight, bias, impl="fp8").double()
    # sums in tensor cores keep fewer bits than float32 (13 on Hopper)
    truth = in_8_bits(x.double(), weight.double(), bias.double())
    assert relative_error(ours, truth) < torch.finfo(dtype).eps + 2.0**-12


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
