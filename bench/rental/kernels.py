"""S1: correctness of every kernel on the device. S6: its time, compared with its peers."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import torch

from anyv2v.kernels.cases import Case, cases
from bench.core import Bench
from bench.kernels import OURS, error, measure
from bench.rental.lab import Lab

TEMPORAL = ("short_attention", "short_probabilities", "apply_probabilities")
TINY = (2, ((4, 64), (2, 64), (2, 64), (2, 64)))


@torch.no_grad()
def correct(lab: Lab) -> None:
    """S1: compare every implementation of every case with its definition, in fp16 and bf16."""
    i, n = lab.share
    calls, nearest = 0, 0.0
    for case, dtype in list(every(lab))[i::n]:
        torch.manual_seed(0)
        args, options = case.draw(lab.device, dtype)
        eps = torch.finfo(dtype).eps
        # PyTorch's own come first, because ours may have twice their error
        rows = sorted(case.table, key=lambda row: row.name in OURS)
        own = 0.0
        for row in rows:
            if row.name == "reference" or row.refuses(*args, **options) is not None:
                continue
            name = f"{case.operation} {case.name} {str(dtype).removeprefix('torch.')}"
            try:
                off = error(case, args, options, row.run(*args, **options))
            except Exception as e:
                lab.fact(name, row.name, "failed", reason=f"{type(e).__name__}: {e}"[:300])
                continue
            ours = row.name in OURS
            allowed = max(2 * own, eps) + eps / 8 if ours else 8 * eps
            if not ours and off <= allowed:
                own = max(own, off)
            status = "ok" if off <= allowed else "wrong"
            if ours:
                calls, nearest = calls + 1, max(nearest, off / allowed)
            lab.fact(name, row.name, status, error=off, allowed=allowed)
        del args, options
        if not lab.dry:
            torch.cuda.empty_cache()  # several processes share the device
    lab.fact(
        f"kernels, share {i + 1} of {n}",
        f"{calls} calls of ours, {lab.bad} wrong",
        worst_of_allowed=nearest,
        headline=True,
    )


def every(lab: Lab) -> Iterator[tuple[Case, torch.dtype]]:
    """Give all cases in both dtypes, and the temporal kernels also for other numbers of frames."""
    for dtype in (torch.float16, torch.bfloat16):
        for case in cases(*TINY) if lab.dry else cases():
            yield case, dtype
        # other numbers of frames, for which the temporal kernels use other tiles
        for frames in (3,) if lab.dry else (8, 24):
            for case in cases(frames, *TINY[1:]) if lab.dry else cases(frames):
                if case.operation in TEMPORAL:
                    yield case, dtype


@torch.no_grad()
def raced(lab: Lab) -> None:
    """S6: time kernels and peers in turns, from CUDA graphs, each run with a flushed cache."""
    rows: list[dict] = []

    def known(row: dict) -> None:
        rows.append(row)
        columns = {k: v for k, v in row.items() if k not in ("case", "implementation", "status")}
        status = {"measured": "ok"}.get(row["status"], row["status"])
        lab.fact(row["case"], row["implementation"], status, **columns)

    bench = Bench(lab.device, False, 0.0 if lab.dry else 0.1, lab.dtype, least=1, on_row=known)
    bench.copy_rate, bench.matrix_rate = lab.rates()
    for case in cases(*TINY) if lab.dry else cases():
        measure(bench, case)
    for fault in bench.faults:
        lab.fact("kernels against peers", "", "wrong", reason=fault)
    with (lab.out / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    won = sum(row["implementation"] == "triton" for row in rows)
    lab.fact("kernels against peers", f"{won} of ours timed, {len(rows)} rows", headline=True)
