"""What Triton's kernels refuse, of every operation and of every tensor that it is given."""

import numpy as np
import pytest
import torch

from anyv2v.kernels import attention, geglu, gpu, group_norm_silu, layer_norm, linear, residual_sum
from anyv2v.kernels import short_attention as short
from anyv2v.kernels.choose import Unsupported

EPS = 1e-5

CALLS = {
    # operation: its door, its table, the shapes of its tensors, what else it is given
    "attention": (attention.attention, attention.TABLE, [(2, 5, 3, 16)] * 3, ()),
    "short attention": (short.short_attention, short.TABLE, [(2, 4, 5, 3, 16)] * 3, ()),
    "probabilities": (
        short.short_probabilities,
        short.PROBABILITIES_TABLE,
        [(2, 4, 5, 3, 16)] * 2,
        (),
    ),
    "apply": (
        short.apply_probabilities,
        short.APPLY_TABLE,
        [(2, 5, 3, 4, 4), (2, 4, 5, 3, 16)],
        (),
    ),
    "geglu": (geglu.geglu, geglu.TABLE, [(7, 16), (24, 16), (24,)], ()),
    "group norm": (
        group_norm_silu.group_norm_silu,
        group_norm_silu.TABLE,
        [(4, 9, 16), (16,), (16,)],
        (4, EPS),
    ),
    "layer norm": (layer_norm.layer_norm, layer_norm.TABLE, [(7, 16), (16,), (16,)], (EPS,)),
    "sum and norm": (
        layer_norm.add_layer_norm,
        layer_norm.ADD_TABLE,
        [(7, 16), (7, 16), (16,), (16,)],
        (EPS,),
    ),
    "residual sum": (residual_sum.residual_sum, residual_sum.TABLE, [(7, 16), (7, 16), (16,)], ()),
}
EVERY = [(name, i) for name, call in CALLS.items() for i in range(len(call[2]))]


@pytest.fixture(autouse=True)
def possible(monkeypatch):
    """As where Triton's kernels run, on a CPU in its interpreter."""
    monkeypatch.setattr(gpu, "INSTALLED", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def triton(table):
    return next(i for i in table if i.name == "triton")


def asked(name, change=None, at=None, **options):
    """Why Triton's kernel refuses the call, one of its tensors changed."""
    _, table, shapes, rest = CALLS[name]
    tensors = [torch.ones(shape, dtype=torch.float16) for shape in shapes]
    if change is not None:
        tensors[at] = change(tensors[at])
    with torch.set_grad_enabled(change is tracked):
        return triton(table).refuses(*tensors, *rest, **options)


def tracked(x):
    return x.clone().requires_grad_()


def wider(x):
    return x.bfloat16()


def apart(x):
    """Every second number of the last dim of something larger."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


@pytest.mark.parametrize("name", CALLS)
def test_a_plain_call_is_taken_in_three_dtypes_alone(name):
    assert asked(name) is None
    _, table, shapes, rest = CALLS[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32):
        tensors = [torch.ones(shape, dtype=dtype) for shape in shapes]
        refusal = triton(table).refuses(*tensors, *rest)
        taken = dtype in (torch.float16, torch.bfloat16, torch.float32)
        assert (refusal is None) == taken, refusal


@pytest.mark.parametrize("name, at", EVERY)
def test_every_tensor_is_looked_at(name, at):
    """The kernels are told one dtype, and write no gradients."""
    assert "differ in dtype" in asked(name, wider, at)
    assert "no gradients" in asked(name, tracked, at)
    assert "contiguous" in asked(name, apart, at)


def test_a_shift_is_looked_at_too():
    assert asked("group norm", shift=torch.ones(2, 16, dtype=torch.float16)) is None
    assert "differ in dtype" in asked("group norm", shift=torch.ones(2, 16))
    grown = torch.ones(2, 32, dtype=torch.float16)[:, ::2]
    assert "contiguous" in asked("group norm", shift=grown)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_given_to_kernels_without_a_gpu(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "needs a CUDA device" in asked(name)
    monkeypatch.setattr(gpu, "INSTALLED", False)
    assert "triton is not installed" in asked(name)


@pytest.mark.parametrize("name, at", [(name, at) for name, at in EVERY if at > 0])
def test_all_tensors_are_on_one_device(name, at):
    assert "several devices" in asked(name, lambda x: x.to("meta"), at)


def test_an_empty_tensor_is_nothing_to_launch_for():
    one = torch.ones(2, 4)
    assert gpu.refuses(one, one) is None
    assert gpu.refuses(one[:0]) == gpu.refuses(one, one[:, :0]) == "a tensor is empty"


def spread(*shape, strides):
    """float16 of any strides, of which nobody may read a number: there is no such memory."""
    strides = [2 * stride for stride in strides]
    return torch.from_numpy(
        np.lib.stride_tricks.as_strided(np.zeros(8, np.float16), shape, strides)
    )


def test_what_a_row_may_span():
    """Offsets within a row are 32-bit numbers, signed; where the row begins is one of 64 bits."""
    longest = 2**31 - 1
    assert gpu.refuses(spread(1, 2, 1, strides=(0, longest, 1))) is None
    assert "2^31 elements or more" in gpu.refuses(spread(1, 2, 1, strides=(0, longest + 1, 1)))
    assert gpu.refuses(spread(3, 2, 1, strides=(2**40, longest, 1))) is None
    assert gpu.refuses(spread(1, 2, 2, strides=(0, longest - 1, 1))) is None
    assert "2^31" in gpu.refuses(spread(1, 2, 2, strides=(0, longest, 1)))
    fine = torch.ones(1, dtype=torch.float16)
    assert "2^31" in gpu.refuses(fine, fine, spread(1, 2, 1, strides=(0, longest + 1, 1)))


def test_what_an_answer_may_span():
    tokens = spread(1, 2**20, 16, 128, strides=(0, 0, 0, 1))
    refuses = triton(attention.TABLE).refuses
    assert "one row of the answer" in refuses(tokens, tokens, tokens)
    less = tokens[:, 1:]
    assert refuses(less, less, less) is None
    positions = spread(1, 4, 2**22, 1, 128, strides=(0, 0, 0, 0, 1))
    refuses = triton(short.TABLE).refuses
    assert "one row of the answer" in refuses(positions, positions, positions)
    less = positions[:, :, 1:]
    assert refuses(less, less, less) is None


def test_the_limits_of_each_kernel():
    def ones(*shape, dtype=torch.float16):
        return torch.ones((), dtype=dtype).expand(*shape[:-1], 1).repeat_interleave(shape[-1], -1)

    def says(table, *args):
        return triton(table).refuses(*args) or ""

    for d in (128, 129):
        q = ones(1, 2, 1, d)
        assert says(attention.TABLE, q, q, q) == ("" if d == 128 else "head dim 129 is over 128")
        q = ones(1, 2, 1, 1, d)
        assert says(short.TABLE, q, q, q) == ("" if d == 128 else "head dim 129 is over 128")
    for n in (128, 129):
        q = ones(1, n, 1, 1, 16)
        refused = "" if n == 128 else "129 tokens are over 128; attention() is for those"
        assert says(short.TABLE, q, q[:, :1], q[:, :1]) == refused
        assert says(short.TABLE, q[:, :1], q, q) == refused
        weights = torch.ones(1, 1, 1, 1, n, dtype=torch.float16)
        assert says(short.APPLY_TABLE, weights, q) == refused
    for c in (8192, 8193):
        x, weight = ones(1, c), ones(c)
        refused = "" if c == 8192 else "8193 numbers are more than one program holds, 8192"
        assert says(layer_norm.TABLE, x, weight, weight, EPS) == refused
        assert says(layer_norm.ADD_TABLE, x, x, weight, weight, EPS) == refused
    for rows in (65535, 65536):
        x, weight = torch.ones(rows, 1, 2, dtype=torch.float16), ones(2)
        refused = "" if rows == 65535 else "65536 rows are more than its grid has, 65535"
        assert says(group_norm_silu.TABLE, x, weight, weight, 1, EPS) == refused


@pytest.mark.parametrize(
    "name, at",
    [
        *(("layer norm", 0), ("sum and norm", 0), ("sum and norm", 1), ("group norm", 0)),
        *(("residual sum", 0), ("residual sum", 1), ("apply", 0)),
    ],
)
def test_rows_lie_one_after_another(name, at):
    """Those kernels are told no strides."""
    assert "not contiguous" in asked(name, lambda x: x.repeat_interleave(2, dim=0)[::2], at)


# oneDNN


@pytest.mark.parametrize("door", [linear.linear, geglu.geglu])
@torch.no_grad()
def test_autocast_is_obeyed(door):
    """Under it a product of float32 is one of the narrow type, and its answer too."""
    x, weight, bias = torch.ones(3, 8), torch.ones(4, 8), torch.ones(4)
    assert door(x, weight, bias).dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert door(x, weight, bias).dtype == dtype
            with pytest.raises(Unsupported, match="autocast"):
                door(x, weight, bias, impl="onednn")


@pytest.mark.parametrize("door", [linear.linear, geglu.geglu])
def test_onednn_without_what_it_needs(door):
    x, weight, bias = torch.ones(3, 8), torch.ones(4, 8), torch.ones(4)
    assert door(x[:0], weight, bias).shape[0] == 0
    with pytest.raises(Unsupported, match="empty"):
        door(x[:0], weight, bias, impl="onednn")
    with pytest.raises(Unsupported, match="float16 on cpu"):
        door(x.half(), weight.half(), bias.half(), impl="onednn")
