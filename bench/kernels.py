"""Every kernel against its peers, on the calls of one UNet forward on 16 frames of 512x512.

    python bench/kernels.py [OPERATION ...] [--out kernels.csv] [--seconds 0.1] [--no-compile]

A result is compared with the definition before anything is timed; a wrong one gets no time. On a
GPU each call is captured in a CUDA graph, the cache is flushed before every run, and CUDA events
give the time. Peers: each SDPA backend, PyTorch operation by operation, PyTorch compiled. Needs
torch and, for the kernels, triton. Without a GPU small cases run, to test the script.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anyv2v.kernels.cases import Case, cases

OURS = "triton"
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
COLUMNS = (
    "operation,case,implementation,dtype,median_us,p20_us,p80_us,best_peer_over_this,"
    "of_copy_bandwidth,tflops,error,device,torch,triton,commit,date"
).split(",")
Run = Callable[[], Any]


class Clock:
    """Times calls on one device."""

    def __init__(self, device: str, seconds: float):
        self.device, self.seconds = device, seconds
        # several times any cache, so that writing it pushes everything else out
        self.flush = torch.empty(2**28, dtype=torch.int8, device=device) if self.cuda else None

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def __call__(self, run: Run) -> tuple[float, float, float]:
        """Median, 20th and 80th percentile of a call, in microseconds."""
        replay = self._captured(run) if self.cuda else run
        replay()
        once = self._measure(replay, 3)[-1]
        count = max(10, min(200, int(self.seconds * 1e6 / max(once, 1))))
        times = self._measure(replay, count)
        cuts = statistics.quantiles(times, n=10)
        return statistics.median(times), cuts[1], cuts[7]

    def _captured(self, run: Run) -> Run:
        """As the network runs it: the launches cost the processor nothing."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def _measure(self, run: Run, count: int) -> list[float]:
        if not self.cuda:
            times = []
            for _ in range(count):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e6)
            return times
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            self.flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for v in value for t in tensors(v)] if not isinstance(value, (int, float)) else []


def moved(*values: Any) -> int:
    """Bytes that have to be read or written at least."""
    return sum(t.numel() * t.element_size() for t in tensors(values))


def flops(case: Case) -> int:
    """Of the matrix products that cannot be left out."""
    if case.operation == "attention":
        (rows, n, heads, d), (_, m, _, _), (values, *_) = case.shapes
        return 2 * heads * n * m * d * (rows + values)
    if case.operation in ("linear", "geglu"):
        (*tokens, _), (width_out, width_in), _ = case.shapes
        return 2 * width_in * width_out * torch.Size(tokens).numel()
    return 0


def peers(case: Case, args: tuple, options: dict, compiled: bool) -> Iterator[tuple[str, Run]]:
    """What somebody without these kernels would run, where the table does not have it already."""
    by_name = {i.name: i.run for i in case.table}
    if case.operation == "attention":
        q, k, v = (x.transpose(1, 2) for x in args)
        groups = v.shape[0] // q.shape[0]
        # what it costs to repeat them is not counted
        q, k = (x.repeat(groups, 1, 1, 1) if groups > 1 else x for x in (q, k))

        def attend(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return out.transpose(1, 2)

        for name, backend in BACKENDS.items():
            yield name, lambda backend=backend: attend(backend)
    elif "sdpa" in by_name:

        def attend_as_the_table_does(backend: SDPBackend) -> Tensor:
            with sdpa_kernel(backend):
                return by_name["sdpa"](*args, **options)

        for name, backend in BACKENDS.items():
            yield name, lambda backend=backend: attend_as_the_table_does(backend)
    if compiled and "eager" in by_name and case.operation != "linear":
        torch._dynamo.reset()
        run = torch.compile(by_name["eager"], fullgraph=True, dynamic=False)
        yield "compiled", lambda: run(*args, **options)


def error(case: Case, args: tuple, options: dict, out: Any) -> float:
    """||out - definition|| / ||definition||, the definition in float64."""
    truth_of = next(i.run for i in case.table if i.name == "reference")
    if case.operation == "attention":
        # one row and its groups of values: all of them would not fit
        rows = args[0].shape[0]
        args, out = (args[0][:1], args[1][:1], args[2][::rows]), out[::rows]

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) else x

    truth = truth_of(*map(wide, args), **{k: wide(v) for k, v in options.items()})
    return max(
        ((ours.double() - wanted).norm() / wanted.norm()).item()
        for ours, wanted in zip(tensors([out]), tensors([truth]), strict=True)
    )


def right(
    case: Case, runs: dict[str, Run], args: tuple, options: dict, dtype: torch.dtype
) -> Iterator[tuple[str, float, int]]:
    """(implementation, error, bytes) of each that can take the call and gives the right result."""
    found = {}
    for name, run in runs.items():
        try:
            out = run()
        except Exception as e:  # a peer that cannot take the call, for whatever reason
            reason = (str(e).strip() or repr(e)).splitlines()[0]
            print(f"  {name:15} cannot: {reason[:90]}")
            continue
        found[name] = error(case, args, options, out), moved(args, options, out)
    eps = torch.finfo(dtype).eps
    # ours may be off by twice as much as PyTorch's own, and a peer by a few roundings
    own = max((found[n][0] for n in ("eager", "sdpa") if n in found), default=eps)
    for name, (off, size) in found.items():
        if off <= (2 * own + eps / 8 if name == OURS else 8 * eps):
            yield name, off, size
        else:
            print(f"  {name:15} WRONG, so not timed: error {off:.1e}, PyTorch's {own:.1e}")


def measure(
    case: Case, clock: Clock, dtype: torch.dtype, copy_rate: float, compiled: bool
) -> Iterator[dict[str, str]]:
    """One row of the table for each implementation that gives the right result."""
    args, options = case.draw(clock.device, dtype)
    runs: dict[str, Run] = {
        i.name: lambda i=i: i.run(*args, **options)
        for i in case.table
        if i.name != "reference" and i.refuses(*args, **options) is None
    }
    runs |= peers(case, args, options, compiled)
    timed = [
        (name, off, size, clock(runs[name]))
        for name, off, size in right(case, runs, args, options, dtype)
    ]
    best = min((times[0] for name, *_, times in timed if name != OURS), default=float("nan"))
    for name, off, size, (median, low, high) in timed:
        yield {
            "operation": case.operation,
            "case": case.name,
            "implementation": name,
            "dtype": str(dtype).removeprefix("torch."),
            "median_us": f"{median:.2f}",
            "p20_us": f"{low:.2f}",
            "p80_us": f"{high:.2f}",
            "best_peer_over_this": f"{best / median:.2f}",
            "of_copy_bandwidth": f"{size / (median * 1e-6) / copy_rate:.2f}",
            "tflops": f"{flops(case) / median / 1e6:.1f}" if flops(case) else "",
            "error": f"{off:.1e}",
        }


def rates(clock: Clock, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second of copying, read and written, and operations per second of a product."""
    size, n = (2**29, 8192) if clock.cuda else (2**24, 512)
    source, target = (torch.zeros(size, dtype=torch.int8, device=clock.device) for _ in range(2))
    copying, _, _ = clock(lambda: target.copy_(source))
    a = torch.randn(n, n, dtype=dtype, device=clock.device)
    product, _, _ = clock(lambda: a @ a)
    return 2 * size / copying * 1e6, 2 * n**3 / product * 1e6


def machine(device: str) -> dict[str, str]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operation", nargs="*", help="all unless given")
    parser.add_argument("--out", type=Path, help="also write the rows to this CSV")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each measurement")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    asked = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    clock, about = Clock(device, asked.seconds), machine(device)
    print(", ".join(f"{k} {v}" for k, v in about.items() if v))
    if not clock.cuda:
        print("not measured on a GPU: small cases, only to see that the script runs")
    chosen = cases() if clock.cuda else cases(2, ((8, 64), (4, 64), (2, 128), (1, 128)))

    with torch.no_grad():
        copy_rate, matmul_rate = rates(clock, dtype)
        print(f"copying {copy_rate / 1e9:.0f} GB/s, matmul {matmul_rate / 1e12:.2f} TFLOP/s")

        rows, start = [], time.perf_counter()
        for case in chosen:
            if asked.operation and case.operation not in asked.operation:
                continue
            print(f"{case.operation}  {case.name}")
            compiled = clock.cuda and not asked.no_compile
            for row in measure(case, clock, dtype, copy_rate, compiled):
                print(
                    "  {implementation:15} {median_us:>10} us ({p20_us} to {p80_us}), best peer "
                    "/ this {best_peer_over_this}, {of_copy_bandwidth} of copying".format(**row)
                )
                rows.append(row | about)
    print(f"{len(rows)} measurements in {time.perf_counter() - start:.0f} s")
    if asked.out:
        with asked.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
