"""Every implementation of short attention, and of its two halves, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from anyv2v.kernels.choose import choose
from anyv2v.kernels.short_attention import (
    APPLY_TABLE,
    PROBABILITIES_TABLE,
    TABLE,
    apply_probabilities,
    reference,
    short_attention,
    short_probabilities,
)
from tests.golden import relative_error
from tests.kernels.truth import bound, draw, softmax, softmax_attention

CASES = [  # r, g, n, p, heads, d
    pytest.param(2, 3, 16, 12, 2, 8, id="shared"),
    pytest.param(1, 1, 7, 5, 3, 16, id="odd"),
    pytest.param(2, 2, 1, 4, 1, 8, id="one-frame"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def names(table):
    return [i.name for i in table]


def drawn(r, g, n, p, heads, d, dtype=torch.float64):
    q, k = (draw(r, n, p, heads, d, seed=i).to(dtype) for i in range(2))
    return q, k, draw(g * r, n, p, heads, d, seed=2).to(dtype)


def within_a_wider_tensor(x):
    """As the projections of a layer would lie."""
    return F.pad(x, (0, 3))[..., : x.shape[-1]]


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
    ours = short_attention(q, k, within_a_wider_tensor(v), impl=name)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, truth) < bound(dtype)


@pytest.mark.parametrize("name", names(PROBABILITIES_TABLE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", CASES)
def test_probabilities_are_the_softmax(r, g, n, p, heads, d, dtype, name):
    q, k, _ = drawn(r, g, n, p, heads, d, dtype)
    ours = short_probabilities(within_a_wider_tensor(q), within_a_wider_tensor(k), impl=name)
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
    ours = apply_probabilities(weights, within_a_wider_tensor(v), impl=name)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, attention_at_every_position(q, k, v)) < bound(dtype)


@pytest.mark.parametrize("n, m", [(3, 5), (5, 1)])
def test_as_many_keys_as_one_likes(n, m):
    q, k, v = draw(1, n, 4, 2, 8, seed=0), draw(1, m, 4, 2, 8, seed=1), draw(2, m, 4, 2, 8, seed=2)
    truth = attention_at_every_position(q, k, v)
    for name in ("eager", "reference"):
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


@pytest.mark.parametrize("name", names(TABLE))
def test_gradients_equal_those_of_the_definition(name):
    inputs = [x.requires_grad_() for x in drawn(2, 2, 5, 3, 2, 8)]
    grads = [
        torch.autograd.grad(short_attention(*inputs, impl=i).pow(2).sum(), inputs)
        for i in (name, "reference")
    ]
    for ours, truth in zip(*grads, strict=True):
        assert relative_error(ours, truth) < 1e-12
