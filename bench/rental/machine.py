"""S0: the machine, its software and its peak rates."""

from __future__ import annotations

import platform
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bench.core import Bench
from bench.rental.lab import Lab


def environment(lab: Lab) -> None:
    """S0: measure the peak rates, and list versions and PyTorch's attention kernels."""
    bench = Bench(lab.device, False, 0.1, torch.float32 if lab.dry else torch.float16)
    if lab.dry:
        size = 2**20
        source = torch.ones(size)
        times = lab.clock(lambda: source.clone())
        copied = 2 * source.nbytes / times.median_s
        a = torch.randn(128, 128)
        product = 2 * 128**3 / lab.clock(lambda: a @ a).median_s
    else:
        copied, product = bench.measure_rates()
    lab.fact("rates", copy_gbs=copied / 1e9, matrix_tflops=product / 1e12, headline=True)
    lab.fact(
        "versions",
        python=platform.python_version(),
        cuda=torch.version.cuda,
        cudnn=None if lab.dry else torch.backends.cudnn.version(),
    )
    lines = [command_output(["nvidia-smi"]), command_output([sys.executable, "-m", "pip", "list"])]
    (lab.out / "environment.txt").write_text("\n".join(lines), encoding="utf-8")
    for name, shape in attentions(lab):
        kernels = attention_kernels(lab, shape)
        lab.fact(f"who attends, {name}", kernels=", ".join(kernels)[:160], headline=True)


def attentions(lab: Lab) -> list[tuple[str, tuple[int, ...]]]:
    """Name -> (batch, tokens, heads, head dim) of self-attentions of the network."""
    if lab.dry:
        return [("4x4", (2, 16, 2, 16))]
    return [("64x64", (16, 4096, 5, 64)), ("32x32", (16, 1024, 10, 64))]


def attention_kernels(lab: Lab, shape: tuple[int, ...]) -> list[str]:
    """List the kernels that PyTorch's attention launches on the strides of the network."""
    q, k, v = (
        torch.randn(shape, device=lab.device, dtype=lab.dtype).transpose(1, 2) for _ in range(3)
    )
    F.scaled_dot_product_attention(q, k, v)
    activity = ProfilerActivity.CPU if lab.dry else ProfilerActivity.CUDA
    with profile(activities=[activity]) as seen:
        F.scaled_dot_product_attention(q, k, v)
    return sorted({e.name for e in seen.events() if lab.dry or "cuda" not in e.name.lower()})


def command_output(command: list[str]) -> str:
    """Return the output of a command, or why it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{command[0]}: {e}"
    return done.stdout + done.stderr
