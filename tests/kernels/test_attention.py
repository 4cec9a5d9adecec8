"""Every implementation of attention against its definition in float64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anyv2v.kernels import gpu
from anyv2v.kernels.attention import TABLE, attention
from anyv2v.kernels.attention.reference import reference
from anyv2v.kernels.choose import Implementation, Unsupported, choose
from tests.kernels.truth import (
    DEVICE,
    DTYPES,
    bound,
    draw,
    names,
    softmax_attention,
    within_nan,
)
from tests.oracles.golden import relative_error

CASES = [  # r, g, n, m, heads, d
    pytest.param(2, 3, 64, 64, 5, 16, id="shared"),
    pytest.param(1, 1, 63, 77, 3, 64, id="odd-lengths"),
    pytest.param(3, 2, 1, 1, 1, 40, id="one-token"),
    pytest.param(2, 1, 200, 145, 2, 8, id="cross"),
]
AWKWARD = [  # r, g, n, m, heads, d
    pytest.param(1, 1, 1, 200, 2, 64),
    pytest.param(2, 2, 7, 16, 3, 40),
    pytest.param(2, 3, 16, 7, 2, 128),
    pytest.param(1, 5, 63, 77, 2, 80),
    pytest.param(1, 4, 77, 145, 1, 16),
    pytest.param(2, 2, 145, 63, 1, 64),
    pytest.param(1, 3, 200, 1, 2, 24),
    pytest.param(1, 2, 16, 128, 2, 40, id="whole-tiles-padded-heads"),
]
REAL = [  # r, g, n, m, heads, d
    pytest.param(2, 3, 4096, 4096, 5, 64, id="self"),
    pytest.param(1, 2, 1024, 1024, 10, 64, id="replay"),
    pytest.param(2, 4, 256, 256, 20, 64, id="four-branches"),
    pytest.param(3, 1, 4096, 145, 5, 64, id="cross"),
    pytest.param(1, 2, 257, 257, 16, 80, id="broad-heads"),
]
needs_triton = pytest.mark.skipif(not gpu.INSTALLED, reason="needs triton")


def drawn(r, g, n, m, heads, d, dtype=torch.float64):
    shapes = (r, n, heads, d), (r, m, heads, d), (g * r, m, heads, d)
    return tuple(draw(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes))


def exact(q, k, v, causal=False):
    return reference(*(x.double().cpu() for x in (q, k, v)), causal=causal)


def by_triton(q, k, v, causal=False):
    inputs = (within_nan(x).to(DEVICE) for x in (q, k, v))
    return attention(*inputs, causal=causal, impl="triton").cpu()


@pytest.mark.parametrize("r, g, n, m, heads, d", CASES)
def test_the_definition_is_softmax_attention(r, g, n, m, heads, d):
    q, k, v = drawn(r, g, n, m, heads, d)
    assert relative_error(reference(q, k, v), softmax_attention(q, k, v)) < 1e-12


@pytest.mark.parametrize("name", names(TABLE))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, m, heads, d", CASES)
def test_implementations_equal_the_definition(r, g, n, m, heads, d, dtype, name):
    q, k, v = drawn(r, g, n, m, heads, d, dtype)
    ours = attention(*(x.to(DEVICE) for x in (q, k, v)), impl=name).cpu()
    assert ours.dtype == dtype and ours.shape == (g * r, n, heads, d)
    assert relative_error(ours, exact(q, k, v)) < bound(dtype)


@pytest.mark.parametrize("name", names(TABLE))
def test_causal_attention_hides_what_comes_after(name):
    q, k, v = (draw(2, 9, 3, 8, seed=i).float().to(DEVICE) for i in range(3))
    out = attention(q, k, v, causal=True, impl=name)
    for n in range(1, 10):  # the last of n tokens sees just these
        part = attention(q[:, n - 1 : n], k[:, :n], v[:, :n], impl=name)
        assert relative_error(out[:, n - 1 : n], part) < 1e-6


@pytest.mark.parametrize("name", names(TABLE))
def test_any_strides(name):
    q, k, v = (draw(4, 3, 17, 8, seed=i).float().to(DEVICE) for i in range(3))
    strided = [x.transpose(1, 2) for x in (q, k, v)]  # heads outermost in memory
    packed = [x.contiguous() for x in strided]
    assert not strided[0].is_contiguous()
    assert relative_error(attention(*strided, impl=name), attention(*packed, impl=name)) < 1e-6


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r, g, n, m, heads, d", AWKWARD)
def test_triton_at_awkward_lengths(r, g, n, m, heads, d, dtype):
    q, k, v = drawn(r, g, n, m, heads, d, dtype)
    # scores as large as trained ones: the running maximum must matter
    q = 4 * q
    ours = by_triton(q, k, v)
    assert ours.dtype == dtype and ours.is_contiguous()
    assert relative_error(ours, exact(q, k, v)) < bound(dtype)


@needs_triton
@pytest.mark.parametrize("n, m", [(77, 77), (145, 63), (7, 200)])
def test_triton_causal(n, m):
    q, k, v = drawn(1, 2, n, m, 2, 16, torch.float32)
    assert relative_error(by_triton(q, k, v, causal=True), exact(q, k, v, causal=True)) < 1e-6


@pytest.mark.parametrize("name", names(TABLE))
def test_scores_beyond_what_an_exponential_holds(name):
    q, k, v = drawn(1, 2, 5, 150, 2, 16, torch.float32)
    q = 100 * q
    ours = attention(*(x.to(DEVICE) for x in (q, k, v)), impl=name).cpu()
    # of scores of hundreds, float32 keeps less
    assert relative_error(ours, exact(q, k, v)) < 1e-4


@needs_triton
def test_triton_reads_keys_that_are_one_for_all_rows():
    """Expanded over rows and heads: strides of 0."""
    q, k, v = drawn(3, 2, 20, 33, 2, 16, torch.float32)
    k, v = k[:1, :, :1].expand_as(k), v[:1].expand_as(v)
    ours = attention(*(x.to(DEVICE) for x in (q, k, v)), impl="triton").cpu()
    assert relative_error(ours, exact(q, k, v)) < 1e-6


@needs_triton
@pytest.mark.parametrize("width, dtype", [(64, "bfloat16"), (128, "bfloat16"), (64, "float32")])
@pytest.mark.parametrize("family", ["sm_80", "sm_90", "gfx942"])
def test_every_tile_of_triton(family, width, dtype, monkeypatch):
    """Five groups of values, in as many launches as the tiles of that GPU take."""
    from anyv2v.kernels.attention import fused

    if DEVICE == "cuda":
        pytest.skip("a GPU takes its own tiles")
    table = fused.tiles_by_groups(family, width, getattr(torch, dtype))
    monkeypatch.setattr(fused, "tiles_by_groups", lambda *_: table)
    q, k, v = drawn(1, 5, 130, 70, 1, width, torch.float32)
    assert relative_error(by_triton(q, k, v), exact(q, k, v)) < 1e-6
    truth = exact(q, k, v[:1], causal=True)
    assert relative_error(by_triton(q, k, v[:1], causal=True), truth) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("r, g, n, m, heads, d", REAL)
def test_triton_is_as_exact_as_pytorch(r, g, n, m, heads, d, dtype):
    q, k, v = (x.cuda() for x in drawn(r, g, n, m, heads, d, dtype))
    truth = reference(q.double(), k.double(), v.double())
    ours, theirs = (relative_error(attention(q, k, v, impl=i), truth) for i in ("triton", "sdpa"))
    assert ours <= 2 * theirs


def test_rows_that_cannot_be_shared_are_refused():
    q, v = torch.zeros(2, 4, 1, 8), torch.zeros(3, 4, 1, 8)
    with pytest.raises(ValueError, match="3 rows of v"):
        attention(q, q, v)


def wrong(d=8, dtype=torch.float32):
    return torch.zeros(2, 4, 3, d, dtype=dtype, device=DEVICE)


@needs_triton
@pytest.mark.parametrize(
    "q, v, reason",
    [
        (wrong(160), wrong(160), "head dim 160 is over 128"),
        (wrong(8), wrong(16), "head dims 8, 8 and 16 are not one"),
        (wrong(dtype=torch.float64), wrong(dtype=torch.float64), "float64 is not float16, bf"),
        (wrong(dtype=torch.float16), wrong(), "differ in dtype; cast them to one"),
        (wrong(), wrong().requires_grad_(), "no gradients; call it under torch.no_grad"),
        (wrong().transpose(2, 3), wrong().transpose(2, 3), "the last dim is not contiguous"),
        (wrong()[:, :0], wrong(), "a tensor is empty"),
        (
            torch.zeros(1, device=DEVICE).expand(2, 2**20, 16, 128),
            torch.zeros(1, device=DEVICE).expand(2, 4, 16, 128),
            "one row of the answer spans 2",
        ),
    ],
)
def test_triton_refuses_with_a_reason(q, v, reason):
    k = v[..., : q.shape[-1]].to(q.dtype).detach()
    with pytest.raises(Unsupported, match=f"attention: triton cannot run this call: .*{reason}"):
        attention(q, k, v, impl="triton")


def test_what_only_has_a_shape_needs_no_kernel_that_was_asked_for():
    """`anyv2v plan` under ANYV2V_ATTENTION=triton: tensors without data take what there is."""
    q, v = wrong().to("meta"), torch.cat([wrong()] * 3).to("meta")
    assert attention(q, q, v, impl="triton").shape == v.shape


def test_without_triton_or_a_gpu_there_is_sdpa(monkeypatch):
    q, k, v = (x.to(torch.float32) for x in drawn(1, 2, 3, 3, 1, 8))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose("attention", TABLE, None, q, k, v).name == "sdpa"
    with pytest.raises(Unsupported, match="it needs a CUDA device, not cpu"):
        attention(q, k, v, impl="triton")
    monkeypatch.setattr(gpu, "INSTALLED", False)
    assert choose("attention", TABLE, None, q, k, v).name == "sdpa"
    with pytest.raises(Unsupported, match="triton is not installed; pip install triton"):
        attention(q, k, v, impl="triton")


@needs_triton
def test_triton_is_chosen_where_a_softmax_is_shared_on_a_gpu():
    with FakeTensorMode():
        q, v, full_q, full_v = (
            torch.empty(rows, 8, 2, 64, device="cuda", dtype=dtype)
            for dtype in (torch.float16, torch.float32)
            for rows in (2, 6)
        )
        assert choose("attention", TABLE, None, q, q, v).name == "triton"
        assert choose("attention", TABLE, None, v, v, v).name == "sdpa"
        assert choose("attention", TABLE, None, full_q, full_q, full_v).name == "sdpa"
        assert "nothing is shared" in TABLE[0].declines(v, v, v)
        assert "no tensor cores" in TABLE[0].declines(full_q, full_q, full_v)
    assert "for tests" in TABLE[0].declines(*(x.float() for x in drawn(1, 2, 3, 3, 1, 8)))


def test_chosen_by_us_falls_back_and_by_name_raises():
    q, k, v = (draw(1, n, 1, 8, seed=0).float() for n in (3, 5, 5))
    # three queries cannot be causal over five keys for sdpa; the reference takes them
    assert attention(q, k, v, causal=True).shape == q.shape
    with pytest.raises(Unsupported, match="sdpa cannot run this call: a causal mask needs"):
        attention(q, k, v, causal=True, impl="sdpa")
    there = "there are: triton, sdpa, reference"
    with pytest.raises(Unsupported, match=f"no implementation 'flash'; {there}"):
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


def test_one_that_avoids_a_call_is_taken_by_name_only():
    table = (
        Implementation("slow", lambda: None, lambda: None, avoids=lambda: "slower than b"),
        Implementation("b", lambda: None, lambda: None),
    )
    assert table[0].declines() == "slower than b" and table[1].declines() is None
    assert choose("op", table, None).name == "b"
    assert choose("op", table, "slow").name == "slow"
