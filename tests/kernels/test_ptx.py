"""Kernels as compiled for sm_90 against float64, in an interpreter of PTX: no GPU is needed."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.ptx import cases  # noqa: E402
from tests.kernels.ptx.launch import execute  # noqa: E402
from tests.kernels.ptx.machine import Hangs  # noqa: E402
from tests.kernels.ptx.memory import Fault, OutOfBounds, Race  # noqa: E402
from tests.kernels.ptx.parse import Unknown  # noqa: E402

HALVES = [torch.float16, torch.bfloat16]
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def in_a_process():
    """Calls a function where kernels are not defined to be interpreted by Triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
            yield lambda function, *args, **options: pool.submit(
                function, *args, **options
            ).result()


def bound(dtype):
    """What rounding once may cost; hardware rounds to nearest."""
    return torch.finfo(dtype).eps / 2


@pytest.fixture
def check(in_a_process):
    def run(case, dtype, *args, **options):
        errors = in_a_process(cases.check, case, dtype, *args, **options)
        assert all(error < bound(dtype) for error in errors.values()), errors

    return run


@pytest.fixture
def fault(in_a_process):
    """What is found in a case; None if nothing is."""

    def run(case, dtype, *args, **options):
        try:
            errors = in_a_process(cases.check, case, dtype, *args, **options)
        except Fault as e:
            return str(e)
        return None if all(e < bound(dtype) for e in errors.values()) else f"wrong by {errors}"

    return run


# the interpreter

HEAD = """
.version 8.7
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1,
    .param .u32 kernel_param_2
)
.reqntid 64
{
    .reg .pred %p<4>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    shl.b32 %r3, %r2, 6;
    add.s32 %r4, %r3, %r1;      // the element
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    ld.param.b32 %r5, [kernel_param_2];
    mad.wide.s32 %rd3, %r4, 4, %rd1;
    mad.wide.s32 %rd4, %r4, 4, %rd2;
"""
DOUBLE = (
    HEAD
    + """
    setp.ge.s32 %p1, %r4, %r5;
    @%p1 bra $L__BB0_2;
    ld.global.b32 { %r6 }, [ %rd3 + 0 ];
    add.f32 %r7, %r6, %r6;
    st.global.b32 [ %rd4 + 0 ], { %r7 };
$L__BB0_2:
    ret;
}
"""
)
# each thread hands its element to the one that is as far from the end as it is from the beginning
REVERSE = (
    HEAD
    + """
    ld.global.b32 { %r6 }, [ %rd3 + 0 ];
    shl.b32 %r7, %r1, 2;
    mov.b32 %r8, global_smem;
    add.s32 %r7, %r7, %r8;
    st.shared.b32 [ %r7 + 0 ], %r6;
    bar.sync 0;
    sub.s32 %r8, 252, %r7;
    ld.shared.b32 %r6, [%r8];
    st.global.b32 [ %rd4 + 0 ], { %r6 };
    ret;
}
"""
)


def launch(ptx, x, y, n, blocks=2):
    arguments = {"x": ("*fp32", x), "y": ("*fp32", y), "n": ("i32", n)}
    execute(ptx, (blocks,), 64, 256, arguments)


def test_lanes_part_at_a_branch():
    x, y = torch.arange(100.0), torch.zeros(100)
    launch(DOUBLE, x, y, 100)
    assert torch.equal(y, 2 * x)


def test_beyond_a_tensor_nothing_is_read_or_written():
    x, y = torch.arange(100.0), torch.zeros(100)
    with pytest.raises(
        OutOfBounds, match="4 bytes of global memory belong to no tensor.*ld.global"
    ):
        launch(DOUBLE, x, y, 101)
    with pytest.raises(OutOfBounds, match="40 bytes of global memory.*st.global"):
        launch(DOUBLE, x, y[:90], 100)
    with pytest.raises(OutOfBounds, match="128 bytes .*ld.global"):
        # what lies between the elements
        launch(DOUBLE, torch.zeros(64)[::2], y, 64)


def test_shared_memory_needs_a_barrier():
    x, y = torch.arange(128.0), torch.zeros(128)
    launch(REVERSE, x, y, 128)
    assert torch.equal(y, x.reshape(2, 64).flip(1).flatten())
    with pytest.raises(Race, match="just written.*ld.shared"):
        launch(REVERSE.replace("bar.sync 0;", ""), x, y, 128)
    with pytest.raises(Race, match="just written.*ld.shared"):
        # the other warp has the element
        launch(REVERSE.replace("bar.sync 0;", "bar.warp.sync -1;"), x, y, 128)
    with pytest.raises(OutOfBounds, match="2 lanes beyond the shared memory"):
        launch(REVERSE.replace("252, %r7", "256, %r7"), x, y, 128)


def test_what_only_some_lanes_reach_hangs():
    one_stays_away = "setp.ne.b32 %p1, %r1, 0; @%p1 bar.sync 0;"
    with pytest.raises(Hangs, match="some lanes do not take part"):
        launch(REVERSE.replace("bar.sync 0;", one_stays_away), *torch.zeros(2, 128), 128)
    for_ever = "$L__BB0_1: \n bra $L__BB0_1;"
    with pytest.raises(Hangs, match="no end"):
        launch(REVERSE.replace("bar.sync 0;", for_ever), *torch.zeros(2, 128), 128)


def test_two_blocks_do_not_write_one_place():
    with pytest.raises(Race, match="two blocks write"):
        launch(DOUBLE.replace("shl.b32 %r3, %r2, 6", "mov.b32 %r3, 0"), *torch.zeros(2, 64), 64)


def test_an_instruction_that_is_not_known_is_named():
    with pytest.raises(Unknown, match=r"no such instruction: line \d+: frob.f32 %r7, %r6"):
        launch(
            DOUBLE.replace("add.f32 %r7, %r6, %r6", "frob.f32 %r7, %r6"), *torch.zeros(2, 64), 64
        )


# the kernels


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "g, d, m",
    [
        (1, 64, 192),
        (1, 64, 145),
        (2, 64, 192),
        (3, 64, 145),
        (3, 64, 192),
        (4, 64, 192),
        (1, 128, 145),
        (3, 128, 192),
        (2, 80, 145),
    ],
)
def test_attention(check, dtype, g, d, m):
    check("attention", dtype, g, d, m)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"causal": True, "m": 77, "n": 77}, id="causal"),
        pytest.param({"causal": True, "m": 200, "n": 200}, id="causal-in-tiles"),
        pytest.param({"rows": 2}, id="rows"),
        pytest.param({"odd_strides": True, "m": 145}, id="odd-strides"),
    ],
)
def test_attention_otherwise(check, dtype, options):
    check("attention", dtype, 1 if "causal" in options else 2, 64, **options)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "g, frames, d",
    [(1, 8, 64), (2, 8, 128), (2, 15, 64), (3, 16, 128), (3, 16, 64), (2, 20, 64), (1, 21, 128)]
    + [(3, 24, 64), (2, 24, 128)],
)
def test_short_attention(check, dtype, g, frames, d):
    check("short_attention", dtype, g, frames, d)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("frames", [16, 24])
def test_short_attention_of_rows_with_odd_strides(check, dtype, frames):
    check("short_attention", dtype, 2, frames, 64, rows=2, odd_strides=True)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("frames, d", [(8, 64), (15, 64), (16, 128), (20, 64), (24, 128)])
def test_probabilities(check, dtype, frames, d):
    check("probabilities", dtype, frames, d, rows=2)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "g, frames, d", [(1, 8, 64), (2, 15, 128), (3, 16, 64), (3, 21, 64), (2, 24, 128)]
)
def test_apply(check, dtype, g, frames, d):
    check("apply", dtype, g, frames, d, rows=2)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shifts", [0, 1])
def test_group_norm_whole(check, dtype, shifts):
    check("group_norm", dtype, 50, 160, 16, shifts=shifts)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shifts", [0, 2])
def test_group_norm_split(check, dtype, shifts):
    # three parts of positions, the last of 44; five tiles of channels
    check("group_norm", dtype, 300, 320, 32, shifts=shifts, whole=False)


@slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", ["layer_norm", "add_layer_norm", "gate", "residual_sum"])
def test_rows(check, dtype, case):
    check(case, dtype, 21, 320)


# deliberate faults

WRONG = {
    "a-key-too-many": dict(
        case=("attention", torch.float16, 2, 64, 145), replace=("(at < m)", "(at <= m)")
    ),
    "keys-not-hidden": dict(
        case=("attention", torch.float16, 2, 64, 145), replace=("if not WHOLE:", "if False:")
    ),
    "a-query-too-many": dict(
        case=("attention", torch.float16, 1, 64, 192), replace=("(query < n)", "(query <= n)")
    ),
    "one-key-less-in-causal": dict(
        case=("attention", torch.float16, 1, 64, 77),
        causal=True,
        replace=("<= query[:, None]", "< query[:, None]"),
    ),
    "sequences-beyond-the-last": dict(
        case=("apply", torch.float16, 2, 16, 64),
        within="_weights",
        replace=("(sequence < sequences) & (query < N)", "(query < N)"),
    ),
    "rows-beyond-the-last": dict(
        case=("gate", torch.float16, 21, 320), replace=("(row < rows)[:, None] & ", "")
    ),
    "stride-of-tokens": dict(case=("attention", torch.bfloat16, 2, 64, 192), add=("v_token", 16)),
    "stride-of-heads": dict(case=("attention", torch.float16, 1, 64, 192), add=("q_head", -16)),
    "stride-of-frames": dict(
        case=("short_attention", torch.float16, 1, 16, 64), add=("k_token", 16)
    ),
    "stride-of-positions": dict(case=("apply", torch.bfloat16, 2, 16, 64), add=("v_position", -16)),
}


@slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mask_or_stride_is_found(fault, name):
    options = dict(WRONG[name])
    case = options.pop("case")
    assert fault(*case, **options) is not None


@slow
@pytest.mark.parametrize(
    "case, operation, needless",
    [
        (("apply", torch.float16, 2, 16, 64), "bar.sync", 0),
        (("short_attention", torch.bfloat16, 1, 24, 64), "bar.sync", 0),
        (("add_layer_norm", torch.float16, 21, 320), "bar.sync", 0),
        # after the loop Triton orders once more what the loop's own barrier has ordered
        (("attention", torch.float16, 3, 64, 145), "bar.sync", 1),
        (("attention", torch.float16, 3, 64, 145), "wgmma.wait_group.sync.aligned", 0),
        (("attention", torch.float16, 3, 64, 145), "cp.async.wait_group", 0),
    ],
)
def test_without_any_one_barrier_or_wait_there_is_a_race(
    fault, in_a_process, case, operation, needless
):
    count = in_a_process(cases.count, operation, *case)
    assert count > needless
    found = [fault(*case, remove=(operation, i)) for i in range(count)]
    assert found.count(None) == needless, found


@slow
def test_without_a_fence_matrices_may_be_old(fault):
    case = "attention", torch.float16, 3, 64, 145
    found = fault(*case, remove=("fence.proxy.async.shared::cta", None))
    assert found.startswith("no fence"), found
