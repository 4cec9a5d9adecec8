"""Benchmarks that check before they time: see bench/README.md for what every column means.

    python -m bench                       # all subjects, the small set, on what there is
    python -m bench edit unet --set full
    python -m bench --device cuda --tests
    python -m bench rental --help         # fifteen minutes on a GPU that keeps nothing

A wrong result has no speed: nothing of its case is timed, and the exit status is 1. Results go to
bench/results/DEVICE-SET.json and .csv; `python bench/report.py` makes the tables and figures of
README.md, docs/benchmarks.md and bench/README.md from them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.core import RESULTS, ROOT, Bench, Wrong, circumstances, save

SUBJECTS = {
    "unet": "forwards and steps of the UNet, ours and diffusers', each saving on and off",
    "edit": "whole edits, each saving on and off, and in the original's way",
    "scaling": "cost and memory against frames, resolution, edits: measured, and as planned",
    "convert": "reading, converting and verifying weights",
    "inversion": "methods of inversion: evaluations, error, and the edits that follow",
    "epsilon": "the same of the backbones that predict noise, by small random networks",
    "flow_inversion": "methods of inversion on flows whose velocity is known",
    "kernels": "every kernel against its peers",
}
"""Name -> description. The most important come first, in case the time does not suffice for all."""


def main(argv: list[str] | None = None) -> int:
    """Run the subjects that the arguments name; returns 1 if any result was wrong, else 0."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["rental"]:
        from bench.rental.run import main as rental

        return rental(argv[1:])
    args = _arguments(argv)
    folder = args.out or Path(os.environ.get("OUT", RESULTS))
    torch.set_num_threads(args.threads)
    started, faults, rates = time.monotonic(), [], None
    if args.tests:
        done = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], cwd=ROOT)
        if done.returncode:
            faults.append(f"pytest -m gpu: exit status {done.returncode}")
    for name in SUBJECTS:
        if args.subject and name not in args.subject and "all" not in args.subject:
            continue
        bench = _bench(args, started)
        if rates is None:
            about = circumstances(bench, "")
            print(", ".join(f"{k} {v}" for k, v in about.items() if v == v and v))
            rates = bench.measure_rates()
        bench.copy_rate, bench.matrix_rate = rates
        _run(name, bench, args, folder)
        faults += bench.faults
    print(f"{time.monotonic() - started:.0f} s, results in {folder}")
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if faults else 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="subjects:\n" + "\n".join(f"  {k:10} {v}" for k, v in SUBJECTS.items()),
    )
    parser.add_argument("subject", nargs="*", help="of those below; all unless given")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--set", choices=("small", "full"), default="small", help="minutes, or up to an hour"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on a CPU")
    parser.add_argument("--seconds", type=float, help="for each contender; else 5, on a GPU 0.5")
    parser.add_argument("--minutes", type=float, help="no case begins later; else without end")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile among the peers: minutes more"
    )
    parser.add_argument("--tests", action="store_true", help="first pytest -m gpu")
    parser.add_argument("--out", type=Path, help="folder; else $OUT, else bench/results")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.subject if name not in (*SUBJECTS, "all")]:
        parser.error(f"{unknown[0]} is none of {', '.join(SUBJECTS)}")
    if args.device == "cuda" and not cuda:
        parser.error("--device cuda: there is no CUDA device here")
    return args


def _bench(args: argparse.Namespace, started: float) -> Bench:
    """The measuring device of one subject; `started`: when the first subject began, monotonic."""
    on_gpu = args.device == "cuda"
    return Bench(
        args.device,
        args.set == "full",
        (0.5 if on_gpu else 5.0) if args.seconds is None else args.seconds,
        torch.bfloat16 if on_gpu else torch.float32,
        args.compile,
        deadline=started + 60 * (args.minutes or float("inf")),
    )


def _run(name: str, bench: Bench, args: argparse.Namespace, folder: Path) -> None:
    """Run one subject; its rows go to files in the folder, its faults are collected by `bench`."""
    command = ["python", "-m", "bench", name, "--device", args.device, "--set", args.set]
    command += ["--compile"] * args.compile
    if args.device == "cpu" and args.threads != os.cpu_count():
        command += ["--threads", str(args.threads)]
    about = circumstances(bench, shlex.join(command))
    # rows are on disk as soon as they are known: the subject may never end
    bench.on_row = lambda _: save(folder, f"{args.device}-{args.set}", name, about, bench.rows)
    print(f"== {name}: {SUBJECTS[name]}", flush=True)
    began = time.monotonic()
    try:
        importlib.import_module(f"bench.{name}").run(bench)
    except Wrong as e:
        bench.fault(f"{name}: nothing is timed: {e}")
    except Exception as e:
        bench.fault(f"{name}: {type(e).__name__}: {e}")
    print(f"== {name}: {len(bench.rows)} rows, {time.monotonic() - began:.0f} s\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
