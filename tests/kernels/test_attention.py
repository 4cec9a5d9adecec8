"""Every implementation of attention against its definition in float64."""

import pytest
import torch

from anyv2v.kernels.attention import TABLE, attention
from anyv2v.kernels.attention.reference import reference
from anyv2v.kernels.choose import Implementation, Unsupported, choose
from tests.golden import relative_error
from tests.kernels.truth import bound, draw, softmax_attention

CASES = [  # r, g, n, m, heads, d
    pytest.param(2, 3, 64, 64, 5, 16, id="shared"),
    pytest.param(1, 1, 63, 77, 3, 64, id="odd-lengths"),
    pytest.param(3, 2, 1, 1, 1, 40, id="one-token"),
    pytest.param(2, 1, 200, 145, 2, 8, id="cross"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = [i.name for i in TABLE]


@pytest.mark.parametrize("r, g, n, m, heads, d", CASES)
def test_the_definition_is_softmax_attention(r, g, n, m, heads, d):
    q, k = draw(r, n, heads, d, seed=0), draw(r, m, heads, d, seed=1)
    v = draw(g * r, m, heads, d, seed=2)
    assert relative_error(reference(q, k, v), softmax_attention(q, k, v)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, m, heads, d", CASES)
def test_implementations_equal_the_definition(r, g, n, m, heads, d, dtype, name):
    q, k, v = (
        draw(*shape, seed=i).to(dtype)
        for i, shape in enumerate(((r, n, heads, d), (r, m, heads, d), (g * r, m, heads, d)))
    )
    truth = reference(q.double(), k.double(), v.double())
    ours = attention(q, k, v, impl=name)
    assert ours.dtype == dtype and ours.shape == (g * r, n, heads, d)
    assert relative_error(ours, truth) < bound(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_causal_attention_hides_what_comes_after(name):
    q, k, v = (draw(2, 9, 3, 8, seed=i).float() for i in range(3))
    out = attention(q, k, v, causal=True, impl=name)
    for n in range(1, 10):  # the last of n tokens sees just these
        part = attention(q[:, n - 1 : n], k[:, :n], v[:, :n], impl=name)
        assert relative_error(out[:, n - 1 : n], part) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(name):
    q, k, v = (draw(4, 3, 17, 8, seed=i).float() for i in range(3))
    strided = [x.transpose(1, 2) for x in (q, k, v)]  # heads outermost in memory
    packed = [x.contiguous() for x in strided]
    assert not strided[0].is_contiguous()
    assert relative_error(attention(*strided, impl=name), attention(*packed, impl=name)) < 1e-6


def test_rows_that_cannot_be_shared_are_refused():
    q, v = torch.zeros(2, 4, 1, 8), torch.zeros(3, 4, 1, 8)
    with pytest.raises(ValueError, match="3 rows of v"):
        attention(q, q, v)


def test_chosen_by_us_falls_back_and_by_name_raises():
    q, k, v = (draw(1, n, 1, 8, seed=0).float() for n in (3, 5, 5))
    # three queries cannot be causal over five keys for sdpa; the reference takes them
    assert attention(q, k, v, causal=True).shape == q.shape
    with pytest.raises(Unsupported, match="sdpa cannot run this call: a causal mask needs"):
        attention(q, k, v, causal=True, impl="sdpa")
    with pytest.raises(Unsupported, match="no implementation 'flash'; there are: sdpa, reference"):
        attention(q, k, v, impl="flash")


def test_the_first_that_does_not_refuse_is_chosen():
    table = tuple(
        Implementation(name, lambda: None, lambda answer=answer: answer)
        for name, answer in (("a", "too old"), ("b", None), ("c", None))
    )
    assert choose("op", table, None).name == "b"
    assert choose("op", table, "c").name == "c"
    with pytest.raises(Unsupported, match="a cannot run this call: too old"):
        choose("op", table, "a")


def test_one_that_yields_is_taken_by_name_only():
    table = (
        Implementation("slow", lambda: None, lambda: None, yields=lambda: "slower than b"),
        Implementation("b", lambda: None, lambda: None),
    )
    assert table[0].declines() == "slower than b" and table[1].declines() is None
    assert choose("op", table, None).name == "b"
    assert choose("op", table, "slow").name == "slow"
