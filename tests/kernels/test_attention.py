"""Every implementation of attention against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F

from anyv2v.kernels.attention import TABLE, attention
from anyv2v.kernels.attention.reference import reference
from anyv2v.kernels.choose import Implementation, Unsupported, choose
from anyv2v.kernels.short_attention import TABLE as SHORT_TABLE
from anyv2v.kernels.short_attention import short_attention
from anyv2v.kernels.short_attention.reference import reference as short_reference
from tests.golden import relative_error

CASES = [  # r, g, n, m, heads, d
    pytest.param(2, 3, 64, 64, 5, 16, id="shared"),
    pytest.param(1, 1, 63, 77, 3, 64, id="odd-lengths"),
    pytest.param(3, 2, 1, 1, 1, 40, id="one-token"),
    pytest.param(2, 1, 200, 145, 2, 8, id="cross"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = [i.name for i in TABLE]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bound(dtype):
    """Half types lose what rounding the answer and the weights once does; float32 adds a sum."""
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps


def closed_form(q, k, v):
    """One softmax row at a time, by hand."""
    rows, out = q.shape[0], torch.empty(v.shape[0], *q.shape[1:3], v.shape[-1], dtype=q.dtype)
    for i in range(v.shape[0]):
        for h in range(q.shape[2]):
            scores = q[i % rows, :, h] @ k[i % rows, :, h].T / q.shape[-1] ** 0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[i, :, h] = weights @ v[i, :, h]
    return out


@pytest.mark.parametrize("r, g, n, m, heads, d", CASES)
def test_the_definition_is_softmax_attention(r, g, n, m, heads, d):
    q, k = draw(r, n, heads, d, seed=0), draw(r, m, heads, d, seed=1)
    v = draw(g * r, m, heads, d, seed=2)
    assert relative_error(reference(q, k, v), closed_form(q, k, v)) < 1e-12


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


SHORT_CASES = [  # r, g, n, p, heads, d
    pytest.param(2, 3, 16, 12, 2, 8, id="shared"),
    pytest.param(1, 1, 7, 5, 3, 16, id="odd"),
    pytest.param(2, 2, 1, 4, 1, 8, id="one-frame"),
]


@pytest.mark.parametrize("name", [i.name for i in SHORT_TABLE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, p, heads, d", SHORT_CASES)
def test_short_attention_is_attention_at_every_position(r, g, n, p, heads, d, dtype, name):
    q, k = (draw(r, n, p, heads, d, seed=i).to(dtype) for i in range(2))
    v = draw(g * r, n, p, heads, d, seed=2).to(dtype)
    truth = torch.stack(
        [closed_form(*(x[:, :, i].double() for x in (q, k, v))) for i in range(p)], dim=2
    )
    assert relative_error(short_reference(q.double(), k.double(), v.double()), truth) < 1e-12
    # out of a wider tensor, as the projections of a layer would lie
    wide = F.pad(v, (0, 3))[..., :d]
    ours = short_attention(q, k, wide, impl=name)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, truth) < bound(dtype)


def test_rows_that_cannot_be_shared_are_refused():
    q, v = torch.zeros(2, 4, 1, 8), torch.zeros(3, 4, 1, 8)
    with pytest.raises(ValueError, match="3 rows of v"):
        attention(q, q, v)
    with pytest.raises(ValueError, match="3 rows of v"):
        short_attention(q[:, :, None], q[:, :, None], v[:, :, None])


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
