"""Every implementation of short attention, and of its two halves, against float64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from anyv2v.kernels import gpu
from anyv2v.kernels.choose import Unsupported, choose
from anyv2v.kernels.short_attention import (
    APPLY_TABLE,
    PROBABILITIES_TABLE,
    TABLE,
    apply_probabilities,
    reference,
    short_attention,
    short_probabilities,
)
from tests.kernels.truth import (
    DEVICE,
    DTYPES,
    bound,
    draw,
    names,
    softmax,
    softmax_attention,
    within_nan,
)
from tests.oracles.golden import relative_error

CASES = [  # r, g, n, p, heads, d
    pytest.param(2, 3, 16, 12, 2, 8, id="shared"),
    pytest.param(1, 1, 7, 5, 3, 16, id="odd"),
    pytest.param(2, 2, 1, 4, 1, 8, id="one-frame"),
]
AWKWARD = [  # r, g, n, m, p, heads, d
    pytest.param(2, 3, 16, 16, 7, 3, 64),
    pytest.param(1, 5, 8, 8, 5, 2, 40),
    pytest.param(3, 2, 1, 7, 3, 1, 16),
    pytest.param(1, 2, 24, 24, 3, 3, 80),
    pytest.param(2, 1, 17, 16, 3, 1, 64),
    pytest.param(1, 2, 63, 48, 2, 2, 64),
    pytest.param(1, 3, 77, 128, 1, 2, 24),
]
REAL = [  # r, g, n, p, heads, d
    pytest.param(1, 3, 16, 4096, 5, 64, id="shared"),
    pytest.param(2, 1, 16, 4096, 5, 64, id="plain"),
    pytest.param(1, 2, 16, 1024, 10, 64, id="replay"),
    pytest.param(1, 3, 8, 1024, 10, 64, id="8-frames"),
    pytest.param(1, 3, 24, 1024, 10, 64, id="24-frames"),
    pytest.param(1, 3, 64, 256, 20, 64, id="64-frames"),
    pytest.param(1, 3, 128, 256, 20, 64, id="128-frames"),
    pytest.param(1, 2, 16, 70, 3, 80, id="odd"),
]
needs_triton = pytest.mark.skipif(not gpu.INSTALLED, reason="needs triton")


def drawn(r, g, n, p, heads, d, dtype=torch.float64, m=None):
    shapes = (r, n, p, heads, d), (r, m or n, p, heads, d), (g * r, m or n, p, heads, d)
    return tuple(draw(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes))


def placed(*tensors):
    """As the projections of a layer would lie, within something wider."""
    return tuple(within_nan(x).to(DEVICE) for x in tensors)


def attention_at_every_position(q, k, v):
    q, k, v = (x.double() for x in (q, k, v))
    at = range(q.shape[2])
    return torch.stack([softmax_attention(q[:, :, i], k[:, :, i], v[:, :, i]) for i in at], dim=2)


@pytest.mark.parametrize("name", names(TABLE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", CASES)
def test_short_attention_is_attention_at_every_position(r, g, n, p, heads, d, dtype, name):
    q, k, v = drawn(r, g, n, p, heads, d, dtype)
    truth = attention_at_every_position(q, k, v)
    exact = reference.reference(*(x.double() for x in (q, k, v)))
    assert relative_error(exact, truth) < 1e-12
    ours = short_attention(*placed(q, k, v), impl=name).cpu()
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, truth) < bound(dtype)


@pytest.mark.parametrize("name", names(TABLE))
@pytest.mark.parametrize("n, m", [(5, 13), (13, 5)])
def test_queries_and_keys_may_differ_in_number(n, m, name):
    q, k, v = drawn(2, 2, n, 3, 2, 8, torch.float32, m)
    out = short_attention(*(x.to(DEVICE) for x in (q, k, v)), impl=name)
    assert relative_error(out.cpu(), attention_at_every_position(q, k, v)) < 1e-6


@pytest.mark.parametrize("name", names(PROBABILITIES_TABLE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", CASES)
def test_probabilities_are_the_softmax(r, g, n, p, heads, d, dtype, name):
    q, k, _ = drawn(r, g, n, p, heads, d, dtype)
    ours = short_probabilities(*placed(q, k), impl=name).cpu()
    assert ours.shape == (r, p, heads, n, n) and ours.dtype == dtype and ours.is_contiguous()
    truth = torch.empty(ours.shape, dtype=torch.float64)
    for row, i, h in torch.cartesian_prod(*map(torch.arange, (r, p, heads))):
        truth[row, i, h] = softmax(q[row, :, i, h].double(), k[row, :, i, h].double())
    assert relative_error(ours, truth) < bound(dtype)


@pytest.mark.parametrize("name", names(APPLY_TABLE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", CASES)
def test_replaying_probabilities_is_attention(r, g, n, p, heads, d, dtype, name):
    q, k, v = drawn(r, g, n, p, heads, d, dtype)
    weights = short_probabilities(q, k)
    ours = apply_probabilities(weights.to(DEVICE), *placed(v), impl=name).cpu()
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, attention_at_every_position(q, k, v)) < bound(dtype)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, m, p, heads, d", AWKWARD)
def test_triton_at_awkward_lengths(r, g, n, m, p, heads, d, dtype):
    q, k, v = drawn(r, g, n, p, heads, d, dtype, m)
    if DEVICE == "cuda" and dtype == torch.float32 and (max(n, m) > 32 or d > 64):
        pytest.skip("float32 is refused there")
    # weights as uneven as trained ones
    q = 4 * q
    exact = [x.double() for x in (q, k, v)]
    truth, true_weights = reference.reference(*exact), reference.probabilities(*exact[:2])
    q, k, v = placed(q, k, v)
    weights = short_probabilities(q, k, impl="triton")
    assert weights.is_contiguous() and weights.dtype == dtype
    assert relative_error(weights.cpu(), true_weights) < bound(dtype)
    for ours in (
        short_attention(q, k, v, impl="triton"),
        apply_probabilities(weights, v, impl="triton"),
    ):
        assert ours.is_contiguous() and ours.dtype == dtype
        assert relative_error(ours.cpu(), truth) < bound(dtype)


@needs_triton
def test_a_replay_of_what_was_kept_is_the_same_to_the_last_bit():
    q, k, v = placed(*drawn(1, 2, 16, 6, 2, 64, torch.float16))
    kept = short_probabilities(q, k, impl="triton")
    once = short_attention(q, k, v, impl="triton")
    assert torch.equal(apply_probabilities(kept, v, impl="triton"), once)


@pytest.mark.parametrize("name", names(TABLE))
def test_scores_beyond_what_an_exponential_holds(name):
    q, k, v = drawn(1, 2, 7, 3, 2, 16, torch.float32)
    q = 100 * q
    truth = reference.reference(*(x.double() for x in (q, k, v)))
    # of scores of hundreds, float32 keeps less
    assert relative_error(short_attention(*placed(q, k, v), impl=name).cpu(), truth) < 1e-4


@needs_triton
def test_triton_reads_permuted_layouts():
    """Positions outermost, or heads, or tokens innermost of the outer dims."""
    q, k, v = drawn(2, 2, 5, 6, 3, 16, torch.float32)
    truth = reference.reference(*(x.double() for x in (q, k, v)))

    def laid_out(x, *order):
        inverse = [order.index(i) for i in range(5)]
        return x.permute(order).contiguous().permute(inverse).to(DEVICE)

    q, k = laid_out(q, 0, 2, 3, 1, 4), laid_out(k, 3, 2, 1, 0, 4)
    v = laid_out(v, 2, 0, 1, 3, 4)
    assert relative_error(short_attention(q, k, v, impl="triton").cpu(), truth) < 1e-6
    weights = short_probabilities(q, k, impl="triton")
    assert relative_error(apply_probabilities(weights, v, impl="triton").cpu(), truth) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", REAL)
def test_triton_is_as_exact_as_pytorch(r, g, n, p, heads, d, dtype):
    q, k, v = (x.cuda() for x in drawn(r, g, n, p, heads, d, dtype))
    truth = reference.reference(q.double(), k.double(), v.double())
    limit = 2 * relative_error(short_attention(q, k, v, impl="sdpa"), truth)
    weights = short_probabilities(q, k, impl="triton")
    assert relative_error(short_attention(q, k, v, impl="triton"), truth) <= limit
    assert relative_error(apply_probabilities(weights, v, impl="triton"), truth) <= limit


@pytest.mark.parametrize("n, m", [(3, 5), (5, 1)])
def test_as_many_keys_as_one_likes(n, m):
    q, k, v = draw(1, n, 4, 2, 8, seed=0), draw(1, m, 4, 2, 8, seed=1), draw(2, m, 4, 2, 8, seed=2)
    truth = attention_at_every_position(q, k, v)
    for name in ("eager", "reference"):  # triton's turn is above
        assert relative_error(short_attention(q, k, v, impl=name), truth) < 1e-12
        weights = short_probabilities(q, k, impl=name)
        assert relative_error(apply_probabilities(weights, v, impl=name), truth) < 1e-12


def test_what_does_not_fit_is_refused():
    q, v = torch.zeros(2, 4, 1, 1, 8), torch.zeros(3, 4, 1, 1, 8)
    with pytest.raises(ValueError, match="3 rows of v"):
        short_attention(q, q, v)
    with pytest.raises(ValueError, match="2 rows of q do not fit 3 of k"):
        short_probabilities(q, v)
    with pytest.raises(ValueError, match="do not fit values"):
        apply_probabilities(short_probabilities(q, q), v)
    with pytest.raises(ValueError, match="do not fit values"):
        apply_probabilities(short_probabilities(q, q), q[:, :3])


def test_a_shared_softmax_is_taken_once():
    q, k, v = drawn(1, 3, 16, 4, 2, 8, torch.float32)
    assert choose("op", TABLE, None, q, k, v).name == "eager"
    assert choose("op", TABLE, None, *(x.to("meta") for x in (q, k, v[:1]))).name == "sdpa"
    with FlopCounterMode(display=False) as counter:
        short_attention(q, k, v)
    product = 2 * 4 * 2 * 16 * 16 * 8  # positions, heads, n, m, d
    assert counter.get_total_flops() == (1 + 3) * product


def test_shapes_and_operations_are_known_without_data():
    q, k, v = (x.to("meta") for x in drawn(2, 3, 16, 4, 2, 8, torch.bfloat16))
    with FlopCounterMode(display=False) as counter:
        weights = short_probabilities(q, k)
        assert weights.shape == (2, 4, 2, 16, 16) and weights.dtype == torch.bfloat16
        assert apply_probabilities(weights, v).shape == short_attention(q, k, v).shape == v.shape
    product = 2 * 2 * 4 * 2 * 16 * 16 * 8  # rows, positions, heads, n, m, d
    assert counter.get_total_flops() == 2 * (1 + 3) * product


def zeros(n=4, p=3, d=8, r=2, dtype=torch.float32):
    return torch.zeros(1, dtype=dtype, device=DEVICE).expand(r, n, p, 2, d)


@needs_triton
@pytest.mark.parametrize(
    "q, v, reason",
    [
        (zeros(), zeros(p=4), "rows do not fit one another: .4, 3, 2, 8., .4, 4, 2, 8."),
        (zeros(129), zeros(), "129 tokens are over 128"),
        (zeros(), zeros(129), "129 tokens are over 128"),
        (zeros(d=160), zeros(d=160), "head dim 160 is over 128"),
        (zeros(p=2**28), zeros(p=2**28), "one row of the answer spans 2.31"),
        (zeros(dtype=torch.float64), zeros(dtype=torch.float64), "float64 is not float16, b"),
        (zeros(), zeros(dtype=torch.float16), "differ in dtype"),
        (zeros(), zeros().clone().requires_grad_(), "no gradients"),
    ],
)
def test_triton_refuses_with_a_reason(q, v, reason):
    with pytest.raises(Unsupported, match=f"triton cannot run this call: .*{reason}"):
        short_attention(q, v.detach(), v, impl="triton")
    if q.shape[2:] == v.shape[2:] and not v.requires_grad and q.dtype == v.dtype:
        with pytest.raises(Unsupported, match=f"triton cannot run this call: .*{reason}"):
            short_probabilities(q, v, impl="triton")


@needs_triton
def test_triton_refuses_probabilities_that_it_cannot_read():
    weights, v = torch.zeros(2, 3, 2, 4, 4, device=DEVICE), zeros().contiguous()
    for changed, values, reason in (
        (weights.mT, v, "not contiguous; call .contiguous"),
        (weights, zeros(p=5), "does not fit"),
        (weights.half(), v, "differ in dtype"),
        (weights, v.clone().requires_grad_(), "no gradients"),
        (torch.zeros(2, 3, 2, 129, 4, device=DEVICE), v, "129 tokens are over 128"),
    ):
        with pytest.raises(Unsupported, match=reason):
            apply_probabilities(changed, values, impl="triton")


def test_without_triton_or_a_gpu_there_is_eager(monkeypatch):
    q, k, v = (x.float() for x in drawn(1, 2, 3, 3, 1, 8))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for monkey in (lambda: None, lambda: monkeypatch.setattr(gpu, "INSTALLED", False)):
        monkey()
        assert choose("op", TABLE, None, q, k, v).name == "eager"
        assert choose("op", PROBABILITIES_TABLE, None, q, k).name == "eager"
        assert choose("op", APPLY_TABLE, None, short_probabilities(q, k), v).name == "eager"
    with pytest.raises(Unsupported, match="triton is not installed"):
        short_probabilities(q, k, impl="triton")


@needs_triton
def test_triton_is_chosen_on_a_gpu():
    with FakeTensorMode():
        q, v, full = (
            torch.empty(rows, 16, 4, 2, 64, device="cuda", dtype=dtype)
            for rows, dtype in ((1, torch.half), (3, torch.half), (1, torch.float))
        )
        weights = torch.empty(1, 4, 2, 16, 16, device="cuda", dtype=torch.half)
        assert choose("op", TABLE, None, q, q, q).name == "triton"
        assert choose("op", TABLE, None, q, q, v).name == "triton"
        assert choose("op", PROBABILITIES_TABLE, None, q, q).name == "triton"
        assert choose("op", APPLY_TABLE, None, weights, v).name == "triton"
        assert choose("op", TABLE, None, full, full, full).name == "sdpa"
        long = torch.empty(1, 33, 4, 2, 64, device="cuda", dtype=torch.float)
        assert "float32 is for 32 tokens" in TABLE[0].refuses(long, long, long)


@pytest.mark.parametrize("name", [i for i in names(TABLE) if i != "triton"])
def test_gradients_equal_those_of_the_definition(name):
    inputs = [x.requires_grad_() for x in drawn(2, 2, 5, 3, 2, 8)]
    grads = [
        torch.autograd.grad(short_attention(*inputs, impl=i).pow(2).sum(), inputs)
        for i in (name, "reference")
    ]
    for ours, truth in zip(*grads, strict=True):
        assert relative_error(ours, truth) < 1e-12
