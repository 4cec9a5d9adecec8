"""Fifteen minutes on a rented GPU: `python -m bench rental --part 1|2|3|4 --seconds N --out DIR`.

A rented machine keeps nothing, may be taken back at any second, and its minutes are few. So every
step is a process of its own with a limit of its own; every fact is a line of DIR/rental.jsonl that
is on disk as soon as it is known; the most important steps come first; and a failure is a fact like
any other, after which the next step starts. `--dry` runs all of it on a CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from bench.core import ROOT, commit
from bench.rental.lab import FACTS, Lab, facts, words
from bench.rental.steps import PARTS, Step, named

MARGIN = 3.0
"""Seconds reserved for ending processes and for the last lines."""
WRONG = 3
"""Exit status of a step that ended with wrong facts."""
SLOWER = 10
"""Time limit of a step in a dry run on a CPU, in multiples of its usual limit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps of a part, each in processes of its own, and print the headlines."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.step:
        return child(args)
    steps = [s for s in PARTS[args.part] if args.only is None or s.name in args.only]
    began = time.time()
    lab = Lab("rental", args.part, args.out, args.dry, began, args.commit)
    deadline = began + args.seconds - MARGIN
    bad = 0
    waiting = begin(steps[0], args, began)
    for i, step in enumerate(steps):
        processes = waiting
        # the next step imports and builds while this one uses the device
        following = steps[i + 1] if i + 1 < len(steps) else None
        waiting = begin(following, args, began) if following else []
        status, reason = turn(step, processes, deadline, args.dry)
        bad += status != "ok"
        lab.step = step.name
        seconds = time.time() - began
        lab.fact("step", step.title, status, reason=reason, ended_s=seconds, headline=True)
    print("\n== what decides ==")
    for line in [x for x in facts(args.out / FACTS) if x["headline"] and x["part"] == args.part]:
        print(words(line))
    # faults are facts for the reader of the file; but in a dry run every step has to work
    return 1 if args.dry and bad else 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench rental",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="steps:\n"
        + "\n".join(f"  {s.name}  {s.title}" for steps in PARTS.values() for s in steps),
    )
    parser.add_argument("--part", type=int, choices=sorted(PARTS), required=True)
    parser.add_argument("--seconds", type=float, default=300, help="for all of it; 300")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="of those below")
    parser.add_argument("--commit", default=commit() or "", help="where there is no .git")
    # how this command runs one step in a process of its own
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    known = [s.name for s in PARTS[args.part]]
    if unknown := [name for name in args.only or () if name not in known]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(known)}")
    if not args.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry runs all of it on a CPU")
    return args


def begin(step: Step, args: argparse.Namespace, began: float) -> list[subprocess.Popen]:
    """Start the processes of a step, which wait for their turn."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    # one cache of compiled kernels for all processes, outside the folder of results
    cache = Path(tempfile.gettempdir()) / "anyv2v-rental-triton"
    environment.setdefault("TRITON_CACHE_DIR", str(cache))
    if args.dry:
        environment["OMP_NUM_THREADS"] = "1"
    if args.dry and step.interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "bench", "rental", "--step", step.name]
    command += ["--part", str(args.part), "--out", str(args.out), "--began", str(began)]
    command += ["--commit", args.commit, *["--dry"] * args.dry]
    processes = 1 if args.dry else step.processes
    return [
        subprocess.Popen(
            [*command, "--share", f"{i}/{processes}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            # a process group of its own, so that its children end with it
            start_new_session=True,
        )
        for i in range(processes)
    ]


def turn(
    step: Step, processes: list[subprocess.Popen], deadline: float, dry: bool
) -> tuple[str, str | None]:
    """Let a step run within its limit and the deadline; returns its status and the reason."""
    left = deadline - time.time()
    if left < step.least:
        end(processes)
        return "skipped", f"{max(0, left):.0f} s are left, it takes {step.least:.0f}"
    ends = time.time() + min(left, step.limit * (SLOWER if dry else 1))
    for process in processes:
        with suppress(OSError):  # it is gone already: its status tells
            process.stdin.write(b"go\n")
            process.stdin.flush()
    try:
        for process in processes:
            process.wait(max(0.1, ends - time.time()))
    except subprocess.TimeoutExpired:
        end(processes)
        return "killed", f"it took more than {min(left, step.limit):.0f} s"
    except BaseException:
        end(processes)
        raise
    codes = [process.returncode for process in processes]
    if set(codes) <= {0, WRONG} and any(codes):
        return "wrong", "of its facts at least one is wrong or failed"
    if any(codes):
        return "failed", f"exit status {', '.join(map(str, codes))}"
    return "ok", None


def end(processes: list[subprocess.Popen]) -> None:
    """Kill the processes and their children."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def child(args: argparse.Namespace) -> int:
    """Run one step in this process, once its turn has come."""
    step = named(args.step)
    i, n = map(int, args.share.split("/"))
    if args.dry:
        torch.set_num_threads(1)
    lab = Lab(step.name, args.part, args.out, args.dry, args.began, args.commit, (i, n))
    try:
        step.prepare()
        if sys.stdin.readline() != "go\n":
            return 0  # whoever started it has ended
        threading.Thread(target=die_with_parent, daemon=True).start()
        step.run(lab)
    except Exception as e:
        traceback.print_exc()
        first = (str(e).strip() or repr(e)).splitlines()[0]
        lab.fact("step", step.title, "failed", reason=f"{type(e).__name__}: {first}"[:300])
        return 1
    return WRONG if lab.bad else 0


def die_with_parent() -> None:
    """Let the system kill this process when its parent ends, so that none runs past its limit."""
    sys.stdin.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)
