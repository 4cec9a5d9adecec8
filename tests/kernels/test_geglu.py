"""Every implementation of GEGLU against its definition in float64."""

import pytest
import torch

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.geglu import TABLE, geglu
from tests.kernels.truth import DEVICE, DTYPES, draw, guarded, names
from tests.oracles.golden import relative_error

NAMES = names(TABLE)
SHAPES = [  # x, e
    ((1, 6), 1),
    ((3, 77, 24), 40),
    ((2, 4, 5, 8), 8),
    ((145, 16), 63),
    ((7, 16), 320),  # more columns than a tile
    ((200, 8), 16),
]


def drawn(shape, width, dtype, device=DEVICE):
    x, weight = draw(*shape, seed=0), draw(2 * width, shape[-1], seed=1)
    return [t.to(device, dtype) for t in (x, weight, draw(2 * width, seed=2))]


def truth(x, weight, bias):
    out = x.double() @ weight.double().T + bias.double()
    value, gate = out.chunk(2, dim=-1)
    return value * gate * torch.distributions.Normal(0, 1).cdf(gate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape, width", SHAPES, ids=str)
@torch.no_grad()
def test_geglu(shape, width, name, dtype):
    x, weight, bias = drawn(shape, width, dtype)
    if name == "onednn":
        if dtype != torch.float32:
            pytest.skip("oneDNN is for float32")
        x, weight, bias = x.cpu(), weight.cpu(), bias.cpu()
    ours = geglu(x, weight, bias, impl=name)
    wide = truth(x, weight, bias)
    assert ours.dtype == dtype and ours.shape == wide.shape
    # several roundings in the narrow types where every operation rounds
    assert relative_error(ours, wide) < (
        1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("rows, width", [(1, 1), (7, 40), (16, 256), (63, 320)])
@torch.no_grad()
def test_the_gate_reads_and_writes_nothing_beside(rows, width):
    pytest.importorskip("triton")
    from anyv2v.kernels.geglu import fused

    h = draw(rows, 2 * width, seed=0).float().to(DEVICE)
    value, gate = h.double().chunk(2, dim=-1)
    wide = value * torch.nn.functional.gelu(gate)
    assert relative_error(fused.gate(guarded(h)), wide) < 1e-6


@torch.no_grad()
def test_gelu_is_the_exact_one():
    """The approximation by tanh is off by up to 5e-4."""
    gate = torch.linspace(-4, 4, 801)[:, None]
    weight, bias = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0])
    for name in NAMES:
        device = "cpu" if name == "onednn" else DEVICE
        ours = geglu(*(t.to(device) for t in (gate, weight, bias)), impl=name).cpu()
        torch.testing.assert_close(
            ours.double(), truth(gate, weight, bias), atol=1e-6, rtol=0, msg=name
        )


def test_fused_is_not_chosen_on_a_cpu_and_says_why(monkeypatch):
    x, weight, bias = drawn((2, 8), 8, torch.float32, "cpu")
    monkeypatch.setattr(gpu, "INSTALLED", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("", TABLE, None, x, weight, bias).name != "triton"
    with pytest.raises(Unsupported, match="differ in dtype"):
        geglu(x, weight, bias.half(), impl="triton")
    with pytest.raises(Unsupported, match="no gradients"):
        geglu(x, weight.clone().requires_grad_(), bias, impl="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        geglu(x, weight, bias, impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, c", [(65536, 320), (16384, 640), (4096, 1280), (77, 24)])
@torch.no_grad()
def test_fused_on_a_gpu_is_as_exact_as_pytorch(rows, c, dtype):
    x, weight, bias = drawn((rows, c), 4 * c, dtype)
    weight = weight / c**0.5
    wide = truth(x, weight, bias)
    ours, eager = (
        relative_error(geglu(x, weight, bias, impl=n), wide) for n in ("triton", "eager")
    )
    assert ours <= 2 * eager + torch.finfo(dtype).eps / 8
