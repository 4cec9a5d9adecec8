"""The shared part of all benchmarks: contenders are checked first and then timed in turns."""

from __future__ import annotations

import csv
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anyv2v.kernels.linear import linear
from anyv2v.pipeline.cuda_graphs import capture
from anyv2v.runtime.atomic_files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
COLUMNS = (
    "subject,case,implementation,peer,status,reason,median_s,p20_s,p80_s,rounds,ratio,evaluations,"
    "tflop,of_matrix_rate,of_copy_rate,peak_mb,error,facts,device,threads,matrix_tflops,copy_gbs,"
    "torch,triton,diffusers,python,commit,date,command"
).split(",")
"""Columns of the CSV; bench/README.md explains them."""


class Wrong(Exception):
    """Raised for a wrong result; whatever depends on it is not timed."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case. Its costs may be known only after it ran."""

    name: str
    run: Callable[[], Any]
    peer: bool = False
    """Whether it is not our code, so that a failure of it is not a fault."""
    evaluations: Callable[[], int] | None = None
    flops: Callable[[], int] | None = None
    moved: Callable[[Any], int] | None = None
    """Result -> the bytes that must be read and written at least."""
    rounds: int | None = None
    """Number of rounds, where it is too slow for as many as the others."""


@dataclass
class Bench:
    """One run on one device: measures cases, prints and collects rows, and collects faults."""

    device: str
    full: bool
    seconds: float
    """Time for each contender of a case; slow ones may take longer."""
    dtype: torch.dtype
    compiling: bool = False
    """Whether torch.compile is among the peers."""
    least: int = 5
    """Least number of rounds, also where they take longer than `seconds`."""
    deadline: float = float("inf")
    """Time on the monotonic clock after which no case begins."""
    rows: list[dict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    on_row: Callable[[dict], None] = lambda row: None
    """Called with each row as soon as it is known."""
    matrix_rate: float = float("nan")
    """Operations of matrix products per second, measured."""
    copy_rate: float = float("nan")
    """Bytes read and written by a copy per second, measured."""

    def __post_init__(self):
        # several times larger than any cache, so that writing it evicts everything else
        size = 2**28 if self.cuda else 0
        self._flush = torch.empty(size, dtype=torch.int8, device=self.device)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def case(
        self,
        name: str,
        contenders: Sequence[Contender],
        error: Callable[[str, Any], float],
        allowed: float | Callable[[str], float],
        least: int | None = None,
        long: bool = False,
        captured: bool = False,
        facts: Callable[[str], dict] = lambda contender: {},
    ) -> None:
        """Check all contenders, then time the right ones in turns, unless one of ours is wrong.

        error: (contender, result) -> error. allowed: the largest error, or contender -> it. least:
        number of rounds. long: every run is checked and timed; else one run is checked before all
        timed ones. captured: in a CUDA graph, on a GPU. facts: contender -> more columns.
        """
        print(name, flush=True)
        if self._is_late(name, contenders):
            return
        if not captured:
            gc.collect()  # so that it does not run while the clock does; kernels leave no garbage
        times: dict[str, list[float]] = {}
        found: dict[str, dict] = {}
        live = list(contenders)

        def attempt(c: Contender, first: bool) -> None:
            try:
                if first:
                    seconds, out, peak = self._observed(c.run)
                else:
                    (seconds, out), peak = self._clock(c.run), None
            except Exception as e:
                live.remove(c)
                self._cannot(name, c, e)
                return
            off = error(c.name, out)
            if not self._is_right(name, c, off, allowed):
                live.remove(c)
                return
            if first:
                moved = {"moved": c.moved(out)} if c.moved else {}
                found[c.name] = {"error": off, "peak": peak, **moved}
            times.setdefault(c.name, []).append(seconds)

        try:
            for round_ in range((least or self.least) if long else 1):
                for c in list(live):
                    if c.rounds is None or round_ < c.rounds:
                        attempt(c, first=round_ == 0)
        except Wrong:
            print("  nothing of this case is timed", flush=True)
            return
        except Exception as e:  # the check itself
            self.fault(f"{name}: {_words(e)}")
            return
        if not long and live:
            self._in_turns(live, times, least or self.least, captured)
        for c in live:
            self._row(name, c, times, found[c.name], facts)

    def _is_late(self, name: str, contenders: Sequence[Contender]) -> bool:
        """Whether the deadline has passed; if so, rows say that the case was skipped."""
        late = time.monotonic() > self.deadline
        for c in contenders if late else ():
            self.skip(name, c.name, "the minutes that were given are over", c.peer)
        return late

    def _is_right(
        self, name: str, c: Contender, off: float, allowed: float | Callable[[str], float]
    ) -> bool:
        """Whether an error is allowed; else record a fault, and raise Wrong for one of ours."""
        limit = allowed(c.name) if callable(allowed) else allowed
        if off <= limit:
            return True
        self.fault(f"{name}: {c.name} is WRONG, error {off:.2g}, allowed {limit:.2g}")
        if not c.peer:
            raise Wrong
        return False

    def skip(self, case: str, contender: str, reason: str, peer: bool = True) -> None:
        """Add a row that says why a contender was not measured."""
        print(f"  {contender:34} -- {reason}", flush=True)
        self._add(case, contender, peer, "skipped", reason=reason)

    def predicted(self, case: str, contender: str, **columns: Any) -> None:
        """Add a row of costs that `anyv2v plan` predicted."""
        self._add(case, contender, False, "predicted", **columns)

    def counted(self, case: str, contender: str, peer: bool = False, **columns: Any) -> None:
        """Add a row of figures that are counted, not timed: operations, evaluations, errors."""
        self._add(case, contender, peer, "counted", **columns)

    def fault(self, words: str) -> None:
        """Print and record a fault; the exit status will be 1."""
        print(f"  FAULT {words}", flush=True)
        self.faults.append(words)

    def measure_rates(self) -> tuple[float, float]:
        """Measure bytes copied and operations of matrix products per second, at best."""
        size, n = (2**31, 8192) if self.cuda else (2**28, 2048)
        source, target = (torch.ones(size, dtype=torch.int8, device=self.device) for _ in range(2))
        a, b = (torch.randn(n, n, dtype=self.dtype, device=self.device) for _ in range(2))

        def seconds(run: Callable[[], Any]) -> float:
            return statistics.median(self._clock(run)[0] for _ in range(11))

        copied = 2 * size / seconds(lambda: target.copy_(source))
        # on some processors our linear is faster than torch's own library
        product = 2 * n**3 / min(seconds(lambda: a @ b), seconds(lambda: linear(a, b, None)))
        print(
            f"copying {copied / 1e9:.0f} GB/s (read and written), "
            f"matrix products {product / 1e12:.3g} TFLOP/s\n"
        )
        return copied, product

    def _in_turns(self, live: list[Contender], times: dict, least: int, captured: bool) -> None:
        runs = {}
        for c in live:
            runs[c.name] = c.run
            if captured and self.cuda:
                with suppress(Exception):  # what cannot be captured is timed without a graph
                    runs[c.name] = captured_graph(c.run)
            if least * times[c.name][0] < self.seconds:
                times[c.name] = [self._clock(runs[c.name])[0]]  # the first run included warming up
        total = sum(seconds[0] for seconds in times.values()) or 1e-9
        rounds = max(least, min(200, int(self.seconds * len(live) / total)))
        for name in times:
            times[name] = []
        for i in range(rounds):
            for c in live if i % 2 else reversed(live):
                times[c.name].append(self._clock(runs[c.name])[0])

    def _clock(self, run: Callable[[], Any]) -> tuple[float, Any]:
        if not self.cuda:
            start = time.perf_counter()
            out = run()
            return time.perf_counter() - start, out
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._flush.zero_()
        begin.record()
        out = run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3, out

    def _observed(self, run: Callable[[], Any]) -> tuple[float, Any, int | None]:
        """Run once; returns seconds, result, and peak memory in bytes over that before the run."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            seconds, out = self._clock(run)
            return seconds, out, torch.cuda.max_memory_allocated() - before
        before = _begin_peak()
        seconds, out = self._clock(run)
        return seconds, out, None if before is None else _resident("VmHWM") - before

    def _cannot(self, case: str, c: Contender, e: Exception) -> None:
        if c.peer:
            self.skip(case, c.name, f"cannot: {_words(e)}")
        else:
            self.fault(f"{case}: {c.name} failed: {_words(e)}")

    def _row(self, case: str, c: Contender, times: dict, found: dict, facts: Callable) -> None:
        taken, first = times[c.name], next(iter(times.values()))
        low, *_, high = statistics.quantiles(
            taken * (1 + (len(taken) == 1)), n=5, method="inclusive"
        )
        median = statistics.median(taken)
        flops = c.flops() if c.flops else None
        moved, peak = found.get("moved"), found["peak"]
        columns = {
            "median_s": median,
            "p20_s": low,
            "p80_s": high,
            "rounds": len(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, first, strict=False)),
            "evaluations": c.evaluations() if c.evaluations else None,
            "tflop": flops / 1e12 if flops else None,
            "of_matrix_rate": flops / median / self.matrix_rate if flops else None,
            "of_copy_rate": moved / median / self.copy_rate if moved else None,
            "peak_mb": None if peak is None else peak / 1e6,
            "error": found["error"],
            "facts": facts(c.name),
        }
        print(
            f"  {c.name:34} {duration(median)} ({duration(low)} to {duration(high)}), "
            f"{columns['ratio']:.3f} of the first's",
            flush=True,
        )
        self._add(case, c.name, c.peer, "measured", **columns)

    def _add(self, case: str, contender: str, peer: bool, status: str, **columns: Any) -> None:
        row = {"case": case, "implementation": contender, "peer": peer, "status": status}
        row |= {k: short(v) for k, v in columns.items() if v is not None}
        self.rows.append(row)
        self.on_row(row)


def captured_graph(run: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a function in a CUDA graph; the result replays it and returns its first output.

    Raises what capturing raises where that is impossible; later captures are not affected.
    """
    # a stream of its own, because in some versions the end of a graph frees the memory in which
    # cuBLAS works on its stream
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    out, graph = capture(run, stream, torch.cuda.graph_pool_handle())

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def circumstances(bench: Bench, command: str) -> dict:
    """Device, versions, commit, date and command of a run."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "diffusers"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": torch.cuda.get_device_name() if bench.cuda else processor(),
        "threads": torch.get_num_threads(),
        "matrix_tflops": short(bench.matrix_rate / 1e12),
        "copy_gbs": short(bench.copy_rate / 1e9),
        **versions,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def commit() -> str | None:
    """Return the short hash of the commit, with a + if files were changed; None outside a clone."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        # results and texts do not change what is measured
        changed = ["status", "--porcelain", "-uno", "--", ".", ":!bench/results", ":!*.md"]
        changed = subprocess.run([*git, *changed], capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") or None


def processor() -> str:
    """Return the name of the CPU."""
    with suppress(OSError):
        if model := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return f"{model[1].strip()}, {platform.machine()}"
    return platform.processor() or platform.machine()


def save(folder: Path, name: str, subject: str, about: dict, rows: list[dict]) -> Path:
    """Write a subject's rows to NAME.json and NAME.csv in place of its earlier rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[subject] = {"about": about, "rows": rows}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with (
        atomic_path(path.with_suffix(".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for subject, result in results.items():
            for row in result["rows"]:
                facts = "; ".join(f"{k}={v}" for k, v in row.get("facts", {}).items())
                writer.writerow({"subject": subject, **row, "facts": facts, **result["about"]})
    return path


def duration(seconds: float) -> str:
    """Format a duration with three digits in s, ms or us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def short(x: Any) -> Any:
    """Round a float to five digits, as results are written; other values stay as they are."""
    return float(f"{x:.5g}") if isinstance(x, float) else x


def _words(e: Exception) -> str:
    return f"{type(e).__name__}: {(str(e).strip() or repr(e)).splitlines()[0]}"[:160]


def _begin_peak() -> int | None:
    """Reset the peak of this process's resident memory; returns its bytes now, None if unknown."""
    with suppress(OSError, AttributeError):
        # memory that the allocator holds would hide what the run takes
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except (OSError, TypeError):
        return None


def _resident(name: str) -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return 1024 * int(re.search(name + r":\s+(\d+)", status)[1])
