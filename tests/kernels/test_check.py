"""A wrong kernel is found before its first launch, and the next implementation takes its calls."""

import os
import re
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import anyv2v
from anyv2v.injection.fractions import Injection
from anyv2v.kernels import (
    attention,
    check,
    explain,
    geglu,
    gpu,
    group_norm_silu,
    layer_norm,
    residual_sum,
    short_attention,
    trust,
)
from anyv2v.kernels.cases import cases
from anyv2v.kernels.choose import Unsupported, choose
from tests.kernels.truth import DEVICE, DTYPES, draw

pytest.importorskip("triton")

from anyv2v.kernels.attention import fused as attention_fused  # noqa: E402
from anyv2v.kernels.geglu import fused as geglu_fused  # noqa: E402
from anyv2v.kernels.group_norm_silu import fused as group_norm_fused  # noqa: E402
from anyv2v.kernels.layer_norm import fused as layer_norm_fused  # noqa: E402
from anyv2v.kernels.residual_sum import fused as residual_sum_fused  # noqa: E402
from anyv2v.kernels.short_attention import fused as short_fused  # noqa: E402

ROOT = Path(__file__).parents[2]
HALF = Injection(0.5, 0.5, 0.5)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TABLES = {
    (attention, "TABLE"): "attention",
    (short_attention, "TABLE"): "short_attention",
    (short_attention, "PROBABILITIES_TABLE"): "short_probabilities",
    (short_attention, "APPLY_TABLE"): "apply_probabilities",
    (group_norm_silu, "TABLE"): "group_norm_silu",
    (geglu, "TABLE"): "geglu",
    (layer_norm, "TABLE"): "layer_norm",
    (layer_norm, "ADD_TABLE"): "add_layer_norm",
    (residual_sum, "TABLE"): "residual_sum",
}
KERNELS = (
    (attention_fused, ("attention_kernel",)),
    (short_fused, ("short_attention_kernel", "short_probabilities_kernel")),
    (short_fused, ("apply_probabilities_kernel",)),
    (group_norm_fused, ("whole_kernel", "moments_kernel", "combine_kernel", "normalize_kernel")),
    (geglu_fused, ("gate_kernel",)),
    (layer_norm_fused, ("layer_norm_kernel",)),
    (residual_sum_fused, ("residual_sum_kernel",)),
)


@pytest.fixture(autouse=True)
def preferred(monkeypatch):
    """Kernels come first in their tables and yield to nobody, are checked, and none was yet."""
    for door, name in TABLES:
        table = [replace(i, avoids=lambda *_, **__: None) for i in getattr(door, name)]
        monkeypatch.setattr(door, name, tuple(sorted(table, key=lambda i: i.name != "triton")))
    monkeypatch.setattr(trust, "_verdicts", {})
    monkeypatch.setenv("ANYV2V_CHECK", "1")


def x(*shape, dtype=torch.float32, seed=0):
    return draw(*shape, seed=seed).to(DEVICE, dtype)


# of each launcher: where it is, its operation, and one tile of what it gives
TILES = {
    "attention": (attention_fused, "attention", lambda out: out[:1, :64, :1]),
    "short_attention": (short_fused, "attention", lambda out: out.flatten(2, 3)[0, :, :4]),
    "short_probabilities": (short_fused, "probabilities", lambda out: out.flatten(1, 2)[0, :4]),
    "apply_probabilities": (short_fused, "apply", lambda out: out.flatten(2, 3)[-1, :, -1:]),
    "group_norm_silu": (group_norm_fused, "fused", lambda out: out[-1, :128, :6]),
    "geglu": (geglu_fused, "gate", lambda out: out.flatten(0, -2)[:16, :256]),
    "layer_norm": (layer_norm_fused, "_launch", lambda out: out[1].flatten(0, -2)[-1:]),
    "add_layer_norm": (layer_norm_fused, "_launch", lambda out: out[0].flatten(0, -2)[:1]),
    "residual_sum": (residual_sum_fused, "fused", lambda out: out.flatten(0, -2)[:32, :64]),
}


def call(operation, dtype=torch.float32, n=21, **options):
    """One call of the door; `impl` names an implementation."""
    q, five = x(1, n, 2, 16, dtype=dtype), x(1, 7, 3, 2, 16, dtype=dtype)
    width, channels = x(24, dtype=dtype), x(3, n, 24, dtype=dtype)
    if operation == "attention":
        return attention.attention(q, q, torch.cat([q, 2 * q]), **options)
    if operation == "short_attention":
        return short_attention.short_attention(five, five, five, **options)
    if operation == "short_probabilities":
        return short_attention.short_probabilities(five, five, **options)
    if operation == "apply_probabilities":
        weights = short_attention.short_probabilities(five, five, impl="reference")
        return short_attention.apply_probabilities(weights, five, **options)
    if operation == "group_norm_silu":
        return group_norm_silu.group_norm_silu(channels, width, width, 4, 0.1, **options)
    if operation == "geglu":
        weight = x(80, 24, dtype=dtype)
        return geglu.geglu(channels, weight, x(80, dtype=dtype), **options)
    if operation == "layer_norm":
        return layer_norm.layer_norm(channels, width, width, **options)
    if operation == "residual_sum":
        return residual_sum.residual_sum(channels, channels, width, **options)
    return torch.cat(layer_norm.add_layer_norm(channels, channels, width, width, **options))


def break_(monkeypatch, operation, fault=None):
    """One tile of what the operation's kernel gives is multiplied by 1.01; the list of launches."""
    module, name, tile = TILES[operation]
    launcher, launches = getattr(module, name), []

    def broken(*args, **options):
        launches.append(args)
        out = launcher(*args, **options)
        if fault is None:
            tile(out).mul_(1.01)
        else:
            fault(out)
        return out

    monkeypatch.setattr(module, name, broken)
    return launches


def told(run):
    """What run() gives, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = run()
    return out, [str(w.message) for w in caught if w.category is RuntimeWarning]


def nothing_is_wrong(out):
    """A fault that is none."""


NEXT = {"attention": "sdpa", "geglu": "onednn"}


def by_the_next(operation, dtype):
    name = NEXT.get(operation, "eager")
    if name == "onednn" and (dtype != torch.float32 or DEVICE != "cpu"):
        name = "eager"
    return call(operation, dtype, impl=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("operation", TILES)
@torch.no_grad()
def test_one_tile_that_is_a_hundredth_too_large_is_found(operation, dtype, monkeypatch):
    launches = break_(monkeypatch, operation)
    out, warned = told(lambda: call(operation, dtype))
    assert torch.equal(out, by_the_next(operation, dtype))
    (warning,) = warned
    assert warning.startswith(f"{operation}: triton failed its check in {dtype} on {out.device}")
    assert "its result is off by 0.00" in warning
    worst = float(re.search(r"where it is worst by ([\d.]+) \(allowed: [\de.-]+\)", warning)[1])
    assert 0.008 < worst < 0.012
    # once found wrong, it is neither launched nor spoken of again
    count = len(launches)
    again, warned = told(lambda: call(operation, dtype))
    assert torch.equal(again, out) and not warned and len(launches) == count == 1


@pytest.mark.parametrize("operation", TILES)
@torch.no_grad()
def test_a_right_one_is_checked_once_and_runs(operation, monkeypatch):
    launches = break_(monkeypatch, operation, nothing_is_wrong)
    for count in (2, 3):
        out, warned = told(lambda: call(operation))
        assert not warned and len(launches) == count
        assert torch.equal(out, call(operation, impl="triton"))
        launches.pop()


@torch.no_grad()
def test_calls_of_the_same_code_share_a_check(monkeypatch):
    launches = break_(monkeypatch, "attention", nothing_is_wrong)
    for n in (21, 21 + 64, 21 + 128):
        call("attention", n=n)
    assert len(launches) == 1 + 3
    call("attention", n=32)
    assert len(launches) == 1 + 3 + 2


@torch.no_grad()
def test_wide_groups_and_many_positions_are_found_too(monkeypatch):
    """The other way that group norm can go: three kernels, tiles of 128 x 64."""
    break_(monkeypatch, "group_norm_silu")
    channels = x(1, 270, 160)
    weight = x(160)
    monkeypatch.setattr(group_norm_fused, "WHOLE", 1024)
    out, (warning,) = told(
        lambda: group_norm_silu.group_norm_silu(channels, weight, weight, 2, 0.1)
    )
    assert "where it is worst by 0.0" in warning
    assert torch.equal(
        out, group_norm_silu.group_norm_silu(channels, weight, weight, 2, 0.1, impl="eager")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", TILES)
@torch.no_grad()
def test_it_is_found_in_half_types_as_a_gpu_rounds_them(operation, dtype):
    """The definition, rounded once, in the kernel's place: the interpreter cuts bfloat16 off."""
    _, _, tile = TILES[operation]
    case = next(case for case in cases(*check.TINY) if case.operation == operation)
    kernel = next(i for i in case.table if i.name == "triton")
    definition = case.table[-1].run
    with FakeTensorMode():
        args, options = case.draw("cpu", dtype)
        small = kernel.small(*args, **options)

    def broken(*args, **options):
        out = definition(*args, **options)
        # a launch of layer norm gives a pair
        tile((None, out) if operation == "layer_norm" else out).mul_(1.01)
        return out

    right, wrong = (
        trust.measure(run, definition, small, CPU, dtype, trust.bounds(CUDA, dtype))
        for run in (definition, broken)
    )
    assert right.wrong is None and right.part < right.bounds[1] / 1.5
    assert wrong.wrong is not None and wrong.part > 1.2 * wrong.bounds[1]


@pytest.mark.parametrize(
    "fault",
    [
        lambda out: out.view(-1)[-1:].fill_(float("nan")),
        lambda out: out.zero_(),
        lambda out: out.copy_(out.roll(1, -1)),
    ],
)
@torch.no_grad()
def test_other_faults_are_found(fault, monkeypatch):
    break_(monkeypatch, "short_attention", fault)
    out, (warning,) = told(lambda: call("short_attention"))
    assert "short_attention: triton failed its check" in warning and out.isfinite().all()


@torch.no_grad()
def test_one_that_raises_is_replaced(monkeypatch):
    def raises(out):
        raise RuntimeError("PTX was compiled with\nan unsupported toolchain")

    break_(monkeypatch, "geglu", raises)
    out, (warning,) = told(lambda: call("geglu"))
    assert "RuntimeError: PTX was compiled with an unsupported toolchain" in warning
    assert torch.equal(out, by_the_next("geglu", torch.float32))


@torch.no_grad()
def test_one_that_cannot_be_imported_is_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "anyv2v.kernels.geglu.fused", None)
    out, (warning,) = told(lambda: call("geglu"))
    assert "ModuleNotFoundError: import of anyv2v.kernels.geglu.fused halted" in warning
    assert torch.equal(out, by_the_next("geglu", torch.float32))


@torch.no_grad()
def test_memory_that_runs_out_is_nobodys_fault(monkeypatch):
    def raises(out):
        raise torch.OutOfMemoryError("no memory")

    break_(monkeypatch, "geglu", raises)
    with pytest.raises(torch.OutOfMemoryError):
        call("geglu")
    assert not trust._verdicts


@torch.no_grad()
def test_what_is_named_and_wrong_is_refused(monkeypatch):
    break_(monkeypatch, "attention")
    with pytest.warns(RuntimeWarning, match="attention: triton failed its check"):
        with pytest.raises(Unsupported, match="triton cannot run this call: its result is off by"):
            call("attention", impl="triton")
    out = call("attention", impl="triton,sdpa")
    assert torch.equal(out, call("attention", impl="sdpa"))


@torch.no_grad()
def test_the_environment_decides(monkeypatch):
    launches = break_(monkeypatch, "layer_norm")
    monkeypatch.setenv("ANYV2V_CHECK", "raise")
    for _ in range(2):
        with pytest.raises(trust.Untrusted, match="layer_norm: triton failed its check: its res"):
            told(lambda: call("layer_norm"))
    monkeypatch.setenv("ANYV2V_CHECK", "0")
    trust._verdicts.clear()
    launches.clear()
    wrong = call("layer_norm")
    assert len(launches) == 1 and not trust._verdicts
    assert not torch.equal(wrong, call("layer_norm", impl="eager"))
    monkeypatch.setenv("ANYV2V_CHECK", "yes")
    with pytest.raises(ValueError, match="ANYV2V_CHECK: 'yes' is not 0, 1 or raise"):
        call("layer_norm")
    monkeypatch.delenv("ANYV2V_CHECK")
    assert [trust._mode(torch.device(i)) for i in ("cuda", "cpu")] == ["1", "0"]


def test_threads_that_meet_a_kernel_at_once_check_it_once(monkeypatch):
    checks, meet = [], threading.Barrier(4)

    def measure(*args):
        checks.append(args)
        time.sleep(0.1)
        return trust.Measured(0.0, 0.0, (1.0, 1.0), 0.1)

    monkeypatch.setattr(trust, "measure", measure)
    q, found = x(1, 7, 3, 2, 16), []

    def run():
        meet.wait()
        found.append(choose("op", short_attention.PROBABILITIES_TABLE, None, q, q).name)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["triton"] * 4 and len(checks) == 1


@torch.no_grad()
def test_nothing_is_checked_in_a_capture(monkeypatch):
    launches = break_(monkeypatch, "attention", nothing_is_wrong)
    monkeypatch.setattr(trust, "_capturing", lambda device: True)
    out, (warning,) = told(lambda: call("attention"))
    assert "first met in a capture of a CUDA graph, where it cannot be checked" in warning
    assert not launches and torch.equal(out, call("attention", impl="sdpa"))
    with pytest.warns(RuntimeWarning), pytest.raises(Unsupported, match="in a capture of a CUDA"):
        call("attention", impl="triton")
    # a verdict is one wherever it is asked for, and none was made
    monkeypatch.setattr(trust, "_capturing", lambda device: False)
    call("attention")
    assert len(launches) == 2
    monkeypatch.setattr(trust, "_capturing", lambda device: True)
    # other numbers of tokens, and the same code
    _, warned = told(lambda: [call("attention", n=n) for n in (21, 21 + 64)])
    assert not warned
    assert len(launches) == 4


@torch.no_grad()
def test_no_random_number_is_taken(monkeypatch):
    states = torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if DEVICE == "cuda" else [])
    for operation in TILES:
        call(operation)
    after = torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if DEVICE == "cuda" else [])
    assert trust._verdicts and all(map(torch.equal, states, after))


def test_tensors_without_data_are_not_checked(monkeypatch):
    monkeypatch.setattr(trust, "measure", lambda *_: pytest.fail("checked"))
    with FakeTensorMode():
        q = torch.empty(1, 16, 2, 64, device="cuda", dtype=torch.half)
        chosen = choose("attention", attention.TABLE, None, q, q, q, causal=False)
    assert chosen.name == "triton" and not trust._verdicts


@pytest.mark.slow
def test_a_compiler_traces_the_choice_without_a_check():
    """In a process of its own: what was compiled once changes what later tests count."""
    code = """
import torch
from anyv2v.kernels import attention, trust
from anyv2v.kernels.choose import choose

def checked(*_):
    raise AssertionError("checked")

trust.measure, seen = checked, []

def chosen(q):
    seen.append(choose("op", attention.TABLE, "triton", q, q, q, causal=False).name)
    return q + 1

torch.compile(chosen, backend="eager", fullgraph=True)(torch.ones(1, 16, 2, 64))
assert seen == ["triton"] and not trust._verdicts
"""
    environment = os.environ | {"ANYV2V_CHECK": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def code(kernel, args, options):
    """What decides the code that Triton makes of a launch."""
    known = []
    for a in args:
        if isinstance(a, int):
            known.append("1" if a == 1 else f"{a >= 2**31} {a % 16 == 0}")
        else:
            known.append(str(a.dtype) if isinstance(a, torch.Tensor) else type(a).__name__)
    return kernel, tuple(known), tuple(sorted(options.items()))


class Recorder:
    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __getitem__(self, grid):
        return lambda *args, **options: self.seen.add(code(self.name, args, options))


def on_meta(shape, dtype):
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize("frames", [16, 5, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
@torch.no_grad()
def test_a_small_call_is_compiled_to_the_same_code(family, dtype, frames, monkeypatch):
    """Every call of the network at full size, as a GPU would get it."""
    monkeypatch.setattr(gpu, "family", lambda device: family)
    seen = set()
    for module, names in KERNELS:
        for name in names:
            monkeypatch.setattr(module, name, Recorder(name, seen))
    for case in cases(frames):
        kernel = next((i for i in case.table if i.small is not None), None)
        if kernel is None:
            continue
        args, options = case.draw("meta", dtype)
        small = kernel.small(*args, **options)
        tensors = [on_meta(shape, dtype) for shape in small.shapes]
        small_args = *tensors, *small.rest
        small_options = {
            k: on_meta(v, dtype) if isinstance(v, tuple) else v for k, v in small.options
        }
        assert sum(t.numel() for t in tensors) < 2**23, "not small"
        found = []
        for a, o in ((args, options), (small_args, small_options)):
            seen.clear()
            kernel.run(*a, **o)
            found.append(set(seen))
        assert found[0] and found[0] == found[1], f"{case.operation} {case.name}"
        assert kernel.small(*small_args, **small_options) == small


@pytest.mark.parametrize(
    "wrong",
    [
        ("short_attention", "geglu", "add_layer_norm"),
        # the interpreter runs half a hundred checks
        pytest.param(tuple(TILES), marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_an_edit_comes_out_right_with_wrong_kernels(
    wrong, editor, video, edited_frame, monkeypatch
):
    clip = anyv2v.Video(video.frames[:2, :, :64], video.fps)

    def latents():
        source = editor.invert(clip, "ddim", 2)
        edit = editor.edit(source, edited_frame[:, :64], "a red circle", steps=2, injection=HALF)
        return edit.latents

    with monkeypatch.context() as without:
        without.setattr(gpu, "INSTALLED", False)
        wanted = latents()
    for (door, name), operation in TABLES.items():
        if operation not in wrong:
            monkeypatch.setattr(door, name, getattr(door, name)[1:])
    for operation in wrong:
        break_(monkeypatch, operation)
    checks, measure = [], trust.measure
    monkeypatch.setattr(trust, "measure", lambda *args: checks.append(args) or measure(*args))
    out, warned = told(latents)
    assert torch.equal(out, wanted)
    found = {w.split(":")[0] for w in warned}
    # nothing is replayed here, and on a CPU no convolution leaves its bias to the sum
    assert found == set(wrong) - {"short_probabilities", "apply_probabilities", "residual_sum"}
    assert len(warned) == len(checks)


def some(*operations):
    return [c for c in cases(*check.TINY) if c.operation in operations]


def test_everything_is_checked_by_hand_in_as_many_shares_as_one_likes():
    of = some("geglu", "add_layer_norm")
    every = list(check.check_all(DEVICE, torch.float32, of=[*of, *some("linear")]))
    assert all(c.measured.wrong is None for c in every)
    assert {(c.operation, c.implementation) for c in every} >= {
        ("geglu", "triton"),
        ("geglu", "eager"),
        ("add_layer_norm", "triton"),
        ("add_layer_norm", "eager"),
    }
    assert {name for c in every for name in c.cases} == {c.name for c in of}
    shares = [list(check.check_all(DEVICE, torch.float32, (i, 2), of)) for i in range(2)]

    def named(checked):
        return [(c.operation, c.cases, c.implementation) for c in checked]

    assert sorted(named(shares[0]) + named(shares[1])) == sorted(named(every))
    assert not set(named(shares[0])) & set(named(shares[1]))


def test_by_hand_a_wrong_one_is_told_and_the_status_is_1(monkeypatch, capsys):
    monkeypatch.setattr(explain, "cases", lambda *_: some("geglu", "layer_norm"))
    asked = ["--check", "--device", DEVICE, "--dtype", "fp32"]
    assert explain.main([*asked, "geglu"]) == 0
    told = capsys.readouterr().out
    assert "right  geglu               triton " in told and "layer_norm" not in told
    break_(monkeypatch, "geglu")

    def raises(out):
        raise RuntimeError("no such instruction")

    break_(monkeypatch, "layer_norm", raises)
    assert explain.main(asked) == 1
    told = capsys.readouterr().out
    assert (
        "WRONG  geglu               triton " in told and "right  geglu               eager" in told
    )
    assert "WRONG  layer_norm" in told and "RuntimeError: no such instruction" in told


def test_by_hand_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for device, needs in (("cpu", "set TRITON_INTERPRET=1"), ("cuda", "there is no CUDA device")):
        with pytest.raises(SystemExit, match="2"):
            explain.main(["--check", "--device", device])
        assert capsys.readouterr().err.endswith(f"{needs}\n")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu_every_kernel_of_a_full_size_edit_is_right(dtype):
    wrong = [
        (c.operation, c.cases, c.implementation, c.measured.wrong)
        for c in check.check_all("cuda", dtype)
        if c.measured.wrong is not None
    ]
    assert not wrong


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_a_capture_takes_what_was_checked_and_nothing_else():
    q = torch.randn(1, 64, 2, 64, device="cuda", dtype=torch.half)
    v = torch.cat([q, 2 * q])

    def captured():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attention.attention(q, q, v)
        graph.replay()
        torch.cuda.synchronize()
        return out.clone()

    # what stands in for it is warm
    attention.attention(q, q, v, impl="sdpa")
    with pytest.warns(RuntimeWarning, match="first met in a capture"):
        unseen = captured()
    assert not trust._verdicts
    eager = attention.attention(q, q, v)
    assert trust._verdicts
    seen, warned = told(captured)
    assert not warned and torch.equal(seen, eager)
    torch.testing.assert_close(unseen, eager, atol=2e-3, rtol=2e-3)
