"""The tools of a rental's steps: facts, clocks, and the small sizes of a dry run."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core import captured_graph, duration, short

FACTS = "rental.jsonl"
SHOWN_SEPARATELY = {
    *("part", "step", "case", "implementation", "status", "since_start_s", "headline"),
    *("median_s", "p20_s", "p80_s", "rounds", "card", "torch", "triton", "commit", "date"),
}


class Times(NamedTuple):
    """Seconds of one run, over several rounds."""

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int


@dataclass
class Lab:
    """What one step of a rental works with, in one of its processes."""

    step: str
    part: int
    out: Path
    dry: bool
    began: float
    """Start of the rental, in `time.time()` seconds."""
    commit: str = ""
    share: tuple[int, int] = (0, 1)
    """(index, number) of this process among those that share the step's cases."""
    bad: int = 0
    """Number of facts so far that are wrong or failed."""

    @property
    def device(self) -> str:
        """The device: cuda, or cpu in a dry run."""
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype: float16, or float32 in a dry run."""
        return torch.float32 if self.dry else torch.float16

    @property
    def seconds(self) -> float:
        """Time for each thing that is timed."""
        return 0.0 if self.dry else 0.5

    def fact(
        self,
        case: str,
        implementation: str = "",
        status: str = "ok",
        *,
        times: Times | None = None,
        headline: bool = False,
        **columns: Any,
    ) -> None:
        """Write one line to rental.jsonl, and print a short form of it.

        headline: the line is printed again at the end. Columns without a value are left out. The
        line is on disk when this returns. It is one write to a file that is opened for appending,
        so lines of several processes do not mix, and a killed process leaves no partial line.
        """
        # leave out NaN, which JSON does not have: a rate that was not measured
        columns = {k: short(v) for k, v in columns.items() if v is not None and v == v}
        timed = {k: short(v) for k, v in times._asdict().items()} if times else {}
        line = {
            "part": self.part,
            "step": self.step,
            "case": case,
            "implementation": implementation,
            "status": status,
            **timed,
            **columns,
            "headline": headline,
            "since_start_s": round(time.time() - self.began, 2),
            **self._circumstances(),
        }
        self.bad += status in ("wrong", "failed")
        append(self.out / FACTS, line)
        print(words(line), flush=True)

    def clock(self, run: Callable[[], Any], seconds: float | None = None, least: int = 3) -> Times:
        """Time a warm run `least` times, and on until `seconds` are over; no cache is flushed."""
        run()
        taken: list[float] = []
        budget = self.seconds if seconds is None else seconds
        while len(taken) < least or (sum(taken) < budget and len(taken) < 200):
            taken.append(self._once(run))
        return quantiles(taken)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Capture a function in a CUDA graph; in a dry run it stays as it is."""
        if self.dry:
            return run
        # a graph needs memory of its own, which the cache might occupy
        torch.cuda.empty_cache()
        return captured_graph(run)

    def stopwatch(self) -> float:
        """Seconds on a clock, after the device has finished its work."""
        if not self.dry:
            torch.cuda.synchronize()
        return time.perf_counter()

    def rates(self) -> tuple[float, float]:
        """Bytes copied and operations of matrix products per second, from an earlier step."""
        for line in facts(self.out / FACTS):
            if line["case"] == "rates" and "copy_gbs" in line:
                return line["copy_gbs"] * 1e9, line["matrix_tflops"] * 1e12
        return float("nan"), float("nan")

    def begin_peak(self) -> None:
        """Start measuring the peak of memory anew."""
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """Peak memory since `begin_peak` in GB, weights included; {} on a CPU."""
        if self.dry:
            return {}
        return {
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.memory_reserved() / 1e9,
        }

    def _once(self, run: Callable[[], Any]) -> float:
        if self.dry:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _circumstances(self) -> dict[str, str]:
        return {
            # the figures of a dry run mean nothing
            "card": "dry run" if self.dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton_version(),
            "commit": self.commit,
            "date": datetime.date.today().isoformat(),
        }


def triton_version() -> str:
    """Return the version of Triton, "none" where it is missing."""
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def append(path: Path, line: dict) -> None:
    """Append a line of JSON to a file, and wait until it is on disk."""
    data = (json.dumps(line) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def facts(path: Path) -> list[dict]:
    """Read all lines of a rental so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def quantiles(taken: list[float]) -> Times:
    """Return the median and the 20th and 80th percentiles."""
    several = taken * (1 + (len(taken) == 1))
    low, *_, high = statistics.quantiles(several, n=5, method="inclusive")
    return Times(statistics.median(taken), low, high, len(taken))


def words(line: dict) -> str:
    """Format a fact as one short line."""
    parts = [f"{line['step']} {line['case']}"]
    parts += [line["implementation"]] * bool(line["implementation"])
    parts += [line["status"].upper()] * (line["status"] != "ok")
    if "median_s" in line:
        parts.append(duration(line["median_s"]))
    parts += [
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in line.items()
        if k not in SHOWN_SEPARATELY
    ]
    return ", ".join(parts)[:240]
