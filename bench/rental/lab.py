"""What a step of a rental works with: where facts go, how time is taken, how small a dry run is."""

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
SAID_ELSEWHERE = {
    *("part", "step", "case", "implementation", "status", "since_start_s", "headline"),
    *("median_s", "p20_s", "p80_s", "rounds", "card", "torch", "triton", "commit", "date"),
}
STATUSES = ("ok", "wrong", "failed", "skipped", "killed")


class Times(NamedTuple):
    """Seconds of one run."""

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int


@dataclass
class Lab:
    """One step's, in one process."""

    step: str
    part: int
    out: Path
    dry: bool
    began: float
    """When the rental did, as `time.time()` says it."""
    commit: str = ""
    share: tuple[int, int] = (0, 1)
    """Which of how many processes this is, that share the step's cases."""
    bad: int = 0
    """Facts so far that are wrong or failed."""

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.float16

    @property
    def seconds(self) -> float:
        """For each thing that is timed."""
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
        """One line of rental.jsonl, on disk when this returns; and a short one on stdout.

        `headline`: it is repeated at the end of what is printed. Columns without a value are left
        out. The line is one write to a file that is opened for appending, so lines of several
        processes do not mix, and a kill leaves no half of one.
        """
        # JSON has no NaN, and a rate that nobody measured says nothing
        told = {k: short(v) for k, v in columns.items() if v is not None and v == v}
        timed = {k: short(v) for k, v in times._asdict().items()} if times else {}
        line = {
            "part": self.part,
            "step": self.step,
            "case": case,
            "implementation": implementation,
            "status": status,
            **timed,
            **told,
            "headline": headline,
            "since_start_s": round(time.time() - self.began, 2),
            **self._circumstances(),
        }
        self.bad += status in ("wrong", "failed")
        append(self.out / FACTS, line)
        print(words(line), flush=True)

    def clock(self, run: Callable[[], Any], seconds: float | None = None, least: int = 3) -> Times:
        """Runs it warm, `least` times and then until `seconds` are over; nothing flushes caches."""
        run()
        taken: list[float] = []
        budget = self.seconds if seconds is None else seconds
        while len(taken) < least or (sum(taken) < budget and len(taken) < 200):
            taken.append(self._once(run))
        return quantiles(taken)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """As the network runs it on a GPU, from a CUDA graph."""
        if self.dry:
            return run
        # a graph has memory of its own, which must not run short for what is merely cached
        torch.cuda.empty_cache()
        return captured_graph(run)

    def stopwatch(self) -> float:
        """Seconds on a clock that has waited for the device."""
        if not self.dry:
            torch.cuda.synchronize()
        return time.perf_counter()

    def rates(self) -> tuple[float, float]:
        """Bytes copied and operations of products per second, as an earlier step measured them."""
        for line in facts(self.out / FACTS):
            if line["case"] == "rates" and "copy_gbs" in line:
                return line["copy_gbs"] * 1e9, line["matrix_tflops"] * 1e12
        return float("nan"), float("nan")

    def begin_peak(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """Gigabytes since `begin_peak`, weights included; nothing on a CPU."""
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
            # a dry run measures nothing that one would want to know
            "card": "dry run" if self.dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton_version(),
            "commit": self.commit,
            "date": datetime.date.today().isoformat(),
        }


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def append(path: Path, line: dict) -> None:
    """Puts a line of JSON at the end of a file, and waits until it is on disk."""
    data = (json.dumps(line) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def facts(path: Path) -> list[dict]:
    """All lines of a rental so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def quantiles(taken: list[float]) -> Times:
    several = taken * (1 + (len(taken) == 1))
    low, *_, high = statistics.quantiles(several, n=5, method="inclusive")
    return Times(statistics.median(taken), low, high, len(taken))


def words(line: dict) -> str:
    """A fact in one short line."""
    told = [f"{line['step']} {line['case']}"]
    told += [line["implementation"]] * bool(line["implementation"])
    told += [line["status"].upper()] * (line["status"] != "ok")
    if "median_s" in line:
        told.append(duration(line["median_s"]))
    told += [
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in line.items()
        if k not in SAID_ELSEWHERE
    ]
    return ", ".join(told)[:240]
