"""Offsets beyond 32 bits: tensors whose rows lie gigabytes apart, of which hardly any byte exists.

Memory that nobody touched takes none, so a few short rows may lie 2^30 elements from one another.
The third then begins at 2^31, which a kernel that counts in 32 bits takes for -2^31.
"""

import mmap

import pytest
import torch
import torch.nn.functional as F

from anyv2v.kernels import gpu
from anyv2v.kernels.attention import attention
from anyv2v.kernels.attention.reference import reference as attention_reference
from anyv2v.kernels.short_attention import (
    apply_probabilities,
    reference,
    short_attention,
    short_probabilities,
)
from tests.kernels.truth import bound, draw
from tests.oracles.golden import relative_error

pytest.importorskip("triton")

APART, ROWS, WIDTH, EPS = 2**30, 3, 16, 1e-5
HALF = torch.float16


@pytest.fixture(scope="module")
def memory():
    """float16 zeros: offsets from -2^31 up to the end of six rows are all there to be read."""
    if not gpu.interpreted():
        pytest.skip("needs Triton's interpreter")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        room = mmap.mmap(-1, 2 * (2**31 + 2 * ROWS * APART), flags=flags)
    except OSError as error:
        pytest.skip(f"no {error} for addresses alone")
    yield torch.frombuffer(room, dtype=HALF)[2**31 :]


@pytest.fixture
def far(memory):
    """far(x): the same numbers, row i of them at offset i * 2^30, in a place of their own."""
    used = 0

    def place(x):
        nonlocal used
        spread = memory[used:].as_strided(x.shape, (APART, *x.stride()[1:]))
        used += x[0].numel()
        return spread.copy_(x)

    return place


def rows(*shape, seed, count=ROWS):
    return draw(count, *shape, seed=seed).to(HALF)


def near(ours, truth):
    return relative_error(ours, truth) < bound(HALF)


@torch.no_grad()
def test_attention(far):
    q, k = (rows(5, 2, 16, seed=seed) for seed in (0, 1))
    v = rows(5, 2, 16, seed=2, count=2 * ROWS)
    truth = attention_reference(q.double(), k.double(), v.double())
    assert near(attention(far(q), far(k), far(v), impl="triton"), truth)


@torch.no_grad()
def test_short_attention(far):
    q, k = (rows(4, 3, 2, 16, seed=seed) for seed in (0, 1))
    v = rows(4, 3, 2, 16, seed=2, count=2 * ROWS)
    wide = [x.double() for x in (q, k, v)]
    assert near(short_attention(far(q), far(k), far(v), impl="triton"), reference.reference(*wide))
    weights = short_probabilities(far(q), far(k), impl="triton")
    assert near(weights, reference.probabilities(*wide[:2]))
    truth = reference.apply(weights.double(), wide[2])
    assert near(apply_probabilities(weights, far(v), impl="triton"), truth)


# the others take contiguous tensors alone: here they are told that a row is longer than what is
# looked at of it


@torch.no_grad()
def test_layer_norm(far):
    from anyv2v.kernels.layer_norm.fused import layer_norm_kernel

    x, branch = rows(WIDTH, seed=0), rows(WIDTH, seed=1)
    weight, bias = rows(WIDTH, seed=2)[:2]
    total, y = far(torch.zeros_like(x)), far(torch.zeros_like(x))
    layer_norm_kernel[(1,)](
        *(far(x), far(branch), weight, bias, total, y),
        *(ROWS, APART, 1 / WIDTH, EPS),
        ADD=True,
        ROWS=4,
        PADDED_DIM=WIDTH,
    )
    assert near(total, x.double() + branch.double())
    truth = F.layer_norm(total.double(), (WIDTH,), weight.double(), bias.double(), EPS)
    assert near(y, truth)


@torch.no_grad()
def test_geglu(far):
    from anyv2v.kernels.geglu.fused import COLUMNS, gate_kernel

    # of a row of `H` the second half begins where the row of `Y` would end
    value, gate = (2 * rows(COLUMNS, seed=seed) for seed in (0, 1))
    h = far(torch.zeros(2 * ROWS, COLUMNS, dtype=HALF))
    h[::2], h[1::2] = value, gate
    y = far(torch.zeros_like(value))
    gate_kernel[(1, 1)](h, y, ROWS, APART, ROWS=4, COLUMNS=COLUMNS)
    assert near(y, value.double() * F.gelu(gate.double()))


@torch.no_grad()
def test_residual_sum(far):
    from anyv2v.kernels.residual_sum.fused import residual_sum_kernel

    x, branch, bias = rows(64, seed=0), rows(64, seed=1), rows(64, seed=2)[0]
    y = far(torch.zeros_like(x))
    residual_sum_kernel[(1,)](far(x), far(branch), bias, y, ROWS, APART, ROWS=4, C=64)
    assert near(y, x.double() + branch.double() + bias.double())


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_group_norm(far, whole):
    from anyv2v.kernels.group_norm_silu.fused import normalize_kernel, whole_kernel

    # one position a row and one group
    x, weight, bias = rows(WIDTH, seed=0), *rows(WIDTH, seed=1)[:2]
    y, spread = far(torch.zeros_like(x)), far(x)
    variance, mean = torch.var_mean(x.double(), dim=1, correction=0, keepdim=True)
    tile = {"N": 1, "C": WIDTH, "SHIFT": False, "SILU": True}
    if whole:
        whole_kernel[(ROWS,)](
            *(spread, spread, weight, bias, y, 1, APART, 1, 1, EPS), GROUP_CHANNELS=WIDTH, **tile
        )
    else:
        moments = mean.float(), (variance + EPS).rsqrt().float()
        normalize_kernel[(1, 1, ROWS)](
            *(spread, spread, *moments, weight, bias, y, 1, APART, 1, 1),
            GROUP_CHANNELS=APART,
            **tile,
        )
    truth = (x.double() - mean) / (variance + EPS).sqrt() * weight.double() + bias.double()
    assert near(y, F.silu(truth))
