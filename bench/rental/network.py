"""S2: one forward of the network, in each way to run it. S3: its profile."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.injection.taps import Record
from anyv2v.kernels import attention as attention_dispatch
from anyv2v.kernels import gpu
from anyv2v.runtime.accounting import count
from bench.counted import UNET
from bench.rental.lab import Lab
from bench.truth import relative, use_definitions
from bench.unet import ALLOWED, Inputs, random_unet, sites_of, ways_of_steps

TINY = UNetConfig(4, (16, 32), (True, False), 1, 8, 32, 8)


def random_inputs(lab: Lab) -> Inputs:
    """Make the published network with random weights, and random inputs."""
    config, frames, side = (TINY, 2, 4) if lab.dry else (UNET, 16, 64)
    return Inputs(random_unet(config, lab.device, lab.dtype), frames, side)


def one_branch(inputs: Inputs) -> Callable[[], Tensor]:
    """Return a prediction of one branch whose conditions are computed beforehand."""
    conditions = inputs.condition(slice(1))
    return lambda: inputs.unet(inputs.latents[:1], inputs.t[:1], conditions)


@contextmanager
def use_attention(name: str | None) -> Iterator[None]:
    """Use the implementation of that name for attention, as $ANYV2V_ATTENTION does."""
    with mock.patch.object(attention_dispatch, "_REQUESTED", name):
        yield


@contextmanager
def use_pytorch() -> Iterator[None]:
    """Use no kernel of ours, as where Triton is missing."""
    with mock.patch.object(gpu, "INSTALLED", False):
        yield


@torch.no_grad()
def forward(lab: Lab) -> None:
    """S2: check and time one forward of the network in each way to run it."""
    inputs = random_inputs(lab)
    ours, allowed = one_branch(inputs), ALLOWED[lab.dtype]
    tflop = count(ours).flops / 1e12
    with use_definitions():
        truth = ours()
        by_definitions = lab.clock(ours, least=2)
    lab.fact("forward, one branch", "every kernel by definition, eager", times=by_definitions)

    def fact(implementation: str, run: Callable[[], Tensor], captured: bool, **columns) -> Tensor:
        lab.begin_peak()
        run = lab.captured(run) if captured else run
        out = run().clone()
        off = relative(out, truth)
        status = "ok" if off <= allowed else "wrong"
        # a wrong result is not timed
        times = lab.clock(run) if status == "ok" else None
        _, matrix = lab.rates()
        lab.fact(
            "forward, one branch",
            implementation,
            status,
            times=times,
            error=off,
            allowed=allowed,
            tflop=tflop,
            of_matrix_rate=tflop * 1e12 / times.median_s / matrix if times else None,
            of_definitions=times.median_s / by_definitions.median_s if times else None,
            headline=True,
            **lab.peak(),
            **columns,
        )
        return out

    eager = fact("anyv2v, eager", ours, False)
    captured = fact("anyv2v, captured (the default)", ours, True)
    same = torch.equal(eager, captured)
    lab.fact("captured equals eager to the bit", str(same), "ok" if same else "wrong")
    with use_pytorch():
        fact("PyTorch in place of every kernel, captured", ours, True)
    for name in ("sdpa", "reference") if lab.dry else ("triton", "sdpa"):
        with use_attention(name):
            fact(f"ANYV2V_ATTENTION={name}, captured", ours, True)

    conditions, sites = inputs.condition(slice(1)), sites_of(inputs.unet)

    def recording() -> Tensor:
        taps = Record(sites, compact=True)
        return inputs.unet(inputs.latents[:1], inputs.t[:1], conditions, taps)

    time_captured(lab, "forward, one branch", "recording all sites, compact", recording)
    _steps(lab, inputs)


def _steps(lab: Lab, inputs: Inputs) -> None:
    """Check and time each way to run a step of an edit."""
    for case, ways in ways_of_steps(inputs).items():
        with use_definitions():
            truth = next(iter(ways.values()))()
        for name, run in ways.items():
            off = relative(run(), truth)
            status = "ok" if off <= ALLOWED[lab.dtype] else "wrong"
            time_captured(lab, case, name, run, status, error=off, headline=True)
            if "rides along" in name or "replayed, compact" in name:
                for other in ("sdpa",) if lab.dry else ("triton", "sdpa"):
                    with use_attention(other):
                        time_captured(lab, case, f"{name}, ANYV2V_ATTENTION={other}", run)


def time_captured(
    lab: Lab, case: str, name: str, run: Callable[[], object], status: str = "ok", **columns
) -> None:
    """Time a function, captured, if its status is "ok"."""
    times = lab.clock(lab.captured(run)) if status == "ok" else None
    lab.fact(case, f"{name}, captured", status, times=times, **columns)


CLASSES = (
    ("triton: attention", r"^attention_kernel"),
    ("triton: short attention", r"^(short_|apply_probabilities)"),
    ("triton: group norm", r"^(whole|moments|combine|normali[sz]e)_kernel"),
    ("triton: GEGLU gate", r"^gate_kernel"),
    ("triton: layer norm", r"^layer_norm_kernel"),
    ("triton: other", r"^\w+_kernel$"),
    ("attention of cuDNN, flash or efficient", r"sdpa|flash|fmha|efficient_attention"),
    ("convolution", r"fprop|convolve|conv2d|implicit|winograd|cudnn.*conv"),
    ("matrix product", r"gemm|nvjet|cutlass|cublas"),
    ("layout changes", r"nchwToNhwc|nhwcToNchw|tensorTransform"),
    ("PyTorch: layer norm", r"layer_norm"),
    ("PyTorch: copies and joins", r"copy|CatArray|memcpy|Memcpy"),
    ("PyTorch: sums", r"CUDAFunctor_add|AddFunctor|add_kernel"),
    ("PyTorch: other elementwise", r"elementwise|silu|upsample|reduce|vectorized"),
)
"""Kind of work -> regular expression of names of kernels; the first that matches counts."""


def kind_of(kernel: str) -> str:
    """Classify a kernel by its name."""
    return next((name for name, form in CLASSES if re.search(form, kernel)), "other")


@torch.no_grad()
def profile_kernels(
    lab: Lab, run: Callable[[], object], path: str, times: int = 3
) -> dict[str, tuple[float, float]]:
    """Profile a function; returns kind of kernel -> (milliseconds, launches) of one run.

    All kernels and operators are written to `path`. The runs are eager; their kernels are those of
    captured runs.
    """
    run()
    lab.stopwatch()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not lab.dry)
    with profile(activities=activities, record_shapes=True) as seen:
        for _ in range(times):
            run()
        lab.stopwatch()
    where = DeviceType.CPU if lab.dry else DeviceType.CUDA

    def spent(row) -> float:
        return row.self_cpu_time_total if lab.dry else row.self_device_time_total

    kernels = [r for r in seen.key_averages() if r.device_type == where and spent(r) > 0]
    kinds: dict[str, tuple[float, float]] = {}
    for row in kernels:
        ms, launches = kinds.get(kind_of(row.key), (0.0, 0.0))
        kinds[kind_of(row.key)] = (
            ms + spent(row) / 1e3 / times,
            launches + row.count / times,
        )
    operators = [
        r
        for r in seen.key_averages(group_by_input_shape=True)
        if r.device_type == DeviceType.CPU and spent(r) > 0
    ]
    with (lab.out / path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["what", "kind", "name", "shapes", "calls a run", "ms a run"])
        for what, rows in (("kernel", kernels), ("operator", operators)):
            for row in sorted(rows, key=spent, reverse=True)[:150]:
                shapes = str(row.input_shapes) if what == "operator" else ""
                kind = kind_of(row.key) if what == "kernel" else ""
                per_run = f"{row.count / times:g}", f"{spent(row) / 1e3 / times:.4f}"
                table.writerow([what, kind, row.key[:200], shapes[:200], *per_run])
    return kinds


@torch.no_grad()
def profile_of_a_forward(lab: Lab) -> None:
    """S3: profile one forward of the network."""
    run = one_branch(random_inputs(lab))
    kinds = profile_kernels(lab, run, "profile1.csv")
    for kind, (ms, launches) in sorted(kinds.items(), key=lambda x: -x[1][0]):
        lab.fact("profile of a forward", kind, ms=ms, launches=launches, headline=True)
    total = sum(ms for ms, _ in kinds.values()), sum(n for _, n in kinds.values())
    lab.fact("profile of a forward", "all kernels", ms=total[0], launches=total[1], headline=True)
