"""Prints which implementation runs each kernel call, and why: `python -m anyv2v.kernels.explain`.

The calls are those of one UNet forward pass on 16 frames of 512x512. Nothing is computed and no
memory is allocated: the tensors have a shape, a dtype and a device but no data. With `--check` the
kernels do run, on a small call for each of these calls, and are compared with their definitions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anyv2v.kernels.cases import Case, cases
from anyv2v.kernels.check import TINY, cannot, check_all
from anyv2v.kernels.choose import Call, Implementation

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Value of `--dtype` -> dtype."""
RUNS, AS_WELL = "RUNS", "could as well"
"""The verdicts of the implementation that is chosen automatically, and of those that need not be
asked after it."""


def explain(case: Case, device: str, dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    """Yields (name of an implementation, verdict) for a call, in the order of the case's table.

    The verdict is "RUNS" for the automatic choice; any other says why that implementation was not
    chosen. Nothing is computed.
    """
    with FakeTensorMode(), torch.no_grad():
        args, options = case.draw(device, dtype)
        yield from verdicts(case.table, args, options)


def explain_call(call: Call, device: str | torch.device) -> list[tuple[str, str]]:
    """Returns the same as `explain` for a call that was observed, as if it were on `device`."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_meta and x.ndim and x.stride(-1) != 1:
            # convolutions on the meta device forget that their input is channels-last
            return torch.empty(x.shape, dtype=x.dtype, device=device)
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)

    with FakeTensorMode(), torch.no_grad():
        args = tuple(map(moved, call.args))
        options = {name: moved(x) for name, x in call.options.items()}
        return list(verdicts(call.table, args, options))


def verdicts(
    table: tuple[Implementation, ...], args: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yields (name of an implementation, verdict) for a call, see `explain`."""
    chosen = False
    for implementation in table:
        if (reason := implementation.refuses(*args, **options)) is not None:
            verdict = f"cannot: {reason}"
        elif (reason := implementation.avoids(*args, **options)) is not None:
            verdict = f"only by name: {reason}"
        else:
            verdict = AS_WELL if chosen else RUNS
            chosen = True
        yield implementation.name, verdict


def check(device: str, dtype: torch.dtype, operations: list[str]) -> bool:
    """Runs `check_all` and prints each result as soon as it is known; returns whether all passed.

    device: "cpu" or "cuda". operations: names of the operations to check; empty checks all.
    """
    calls = cases() if device == "cuda" else cases(*TINY)
    selected = [case for case in calls if not operations or case.operation in operations]
    print("errors and what is allowed, of the whole result and of its worst part", flush=True)
    right = True
    for checked in check_all(device, dtype, of=selected):
        measured = checked.measured
        right &= measured.wrong is None
        errors = zip((measured.error, measured.part), measured.bounds, strict=True)
        print(
            f"{'right' if measured.wrong is None else 'WRONG'}  "
            f"{checked.operation:19} {checked.implementation:7} "
            f"{'  '.join(f'{error:.1e} of {bound:.1e}' for error, bound in errors)}  "
            f"{measured.seconds:6.2f} s  {', '.join(checked.cases)}",
            *([f"\n       {measured.failure}"] if measured.failure else []),
            flush=True,
        )
    return right


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 if a check failed, else 0.

    argv: the arguments of the command; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m anyv2v.kernels.explain")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=here)
    parser.add_argument("--dtype", choices=list(DTYPES), help="bf16, on a CPU fp32")
    parser.add_argument("operation", nargs="*", help="all unless given")
    parser.add_argument("--check", action="store_true", help="run them, on small inputs")
    args = parser.parse_args(argv)
    if args.check and (reason := cannot(args.device)) is not None:
        parser.error(f"--check: {reason}")
    dtype = DTYPES[args.dtype or ("fp32" if args.device == "cpu" else "bf16")]

    if args.check:
        print(f"{dtype} on {args.device}, torch {torch.__version__}:")
        return 0 if check(args.device, dtype, args.operation) else 1

    print(f"{dtype} on {args.device}, torch {torch.__version__}; the automatic choice:")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("(there is no CUDA here; answered for a GPU of compute capability 9.0)")
    for case in cases():
        if args.operation and case.operation not in args.operation:
            continue
        print(f"\n{case.operation}  {case.name}")
        if requested := os.environ.get(f"ANYV2V_{case.operation.upper()}"):
            print(f"  ANYV2V_{case.operation.upper()} asks for {requested}; without it:")
        for name, verdict in explain(case, args.device, dtype):
            print(f"  {name:10} {verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
