"""Hostile inputs by the thousand: each has to end in a result or in our own error.

    python tests/fuzz.py --seed 1 --inputs 20000

Valid files of sixteen kinds are changed at random (tests/hostile/mutate.py) and read by the
package (tests/hostile/targets.py), in a process that may take 4 GiB and 10 s of processor time for
each.
An input and its index are one: `--kind clip --only 4711` tries one again. Exit status 1 if there is
a defect; its file is kept in the folder that --keep names.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("weights", "config", "manifest", "tokenizer", "source", "unfinished", "image", "clip")
KINDS += ("frames", "moving", "mask", "profile", "adapter", "whole_clip", "wan", "embeddings")
GOOD = ("result", "InputError")
DEFECTS = ("exception", "wrong", "memory", "time", "crash")
SECONDS = 10.0
"""Of processor time for one input; a process that sleeps is waited for six times as long."""


class Worker:
    """A process that reads inputs; a new one whenever it had to be killed or died."""

    def __init__(self, examples: Path, seed: int):
        self._folder = Path(tempfile.mkdtemp(dir=examples.parent))
        self._examples, self._seed = examples, seed
        self._process: subprocess.Popen | None = None

    def read(self, kind: str, index: int) -> dict:
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{kind} {index}\n")
        self._process.stdin.flush()
        began, used = time.monotonic(), self._cpu()
        while True:
            if self._answers.select(timeout=0.5):
                if line := self._process.stdout.readline():
                    return json.loads(line)
                status = self._process.wait()
                self.close()
                return {"ended": "crash", "says": f"exit status {status}", "seconds": 0, "peak": 0}
            seconds = self._cpu() - used
            if seconds > SECONDS or time.monotonic() - began > 6 * SECONDS:
                self.close()
                return {"ended": "time", "says": "", "seconds": seconds, "peak": 0}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        # a fresh copy: the last one may have been left with a changed file
        shutil.copytree(self._examples, self._folder, dirs_exist_ok=True)
        self._process = subprocess.Popen(
            _command(self._folder, "--seed", str(self._seed)),
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process that reads the inputs does not start")

    def _cpu(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(seed: int, tasks: list[tuple[str, int]], folder: Path, report=None) -> list[dict]:
    """How each input ended: kind, index, and the answer of the process that read it."""
    examples = folder / "examples"
    examples.mkdir()
    command = [*_command(examples), "--prepare"]
    subprocess.run(command, env=_environment(), check=True)
    worker, outcomes = Worker(examples, seed), []
    try:
        for kind, index in tasks:
            outcomes.append({"kind": kind, "index": index, **worker.read(kind, index)})
            if report is not None:
                report(outcomes[-1])
    finally:
        worker.close()
    return outcomes


def table(outcomes: list[dict]) -> str:
    """Inputs by kind and outcome."""
    columns = [*GOOD, *DEFECTS]
    rows = [["kind", "inputs", *columns, "slowest"]]
    kinds = list(dict.fromkeys(o["kind"] for o in outcomes))
    for name, some in [
        *((k, [o for o in outcomes if o["kind"] == k]) for k in kinds),
        ("all", outcomes),
    ]:
        counts = Counter(o["ended"] for o in some)
        slowest = max(o["seconds"] for o in some)
        rows.append([name, len(some), *(counts[c] for c in columns), f"{slowest:.2f} s"])
    return "\n".join(" ".join(f"{cell!s:>11}" for cell in row) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all kinds together")
    parser.add_argument("--kind", choices=KINDS, action="append", help="these only")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this input only")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that show a defect")
    args = parser.parse_args()
    kinds = args.kind or KINDS
    indices = range(-(-args.inputs // len(kinds))) if args.only is None else [args.only]
    # in turns, so that a run that is broken off has tried every kind
    tasks = [(kind, index) for index in indices for kind in kinds]

    def report(outcome: dict) -> None:
        if outcome["ended"] in DEFECTS or args.only is not None:
            print("{kind} {index}: {ended}: {says}".format(**outcome), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(args.seed, tasks, Path(folder), report)
        if args.keep is not None:
            _keep(args.keep, Path(folder) / "examples", args.seed, outcomes)
    print(table(outcomes))
    print(f"peak {max(o['peak'] for o in outcomes) / 2**30:.2f} GiB")
    return int(any(o["ended"] in DEFECTS for o in outcomes))


def _keep(folder: Path, examples: Path, seed: int, outcomes: list[dict]) -> None:
    from tests.hostile import targets

    folder.mkdir(exist_ok=True)
    valid = targets.Examples(examples)
    for o in outcomes:
        if o["ended"] in DEFECTS:
            name, data = targets.make(targets.KINDS[o["kind"]], valid, seed, o["index"])
            (folder / f"{o['kind']}-{seed}-{o['index']}-{Path(name).name}").write_bytes(data)


def _command(folder: Path, *options: str) -> list[str]:
    from tests.interpreter import module  # on the path by now, if this file is run

    return [*module("tests.hostile.worker"), str(folder), *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    sys.exit(main())
