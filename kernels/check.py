"""The checks of all kernels at once, by hand: `python -m anyv2v.kernels.explain --check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anyv2v.kernels import gpu, trust
from anyv2v.kernels.cases import Case, cases
from anyv2v.kernels.choose import Implementation
from anyv2v.kernels.trust import Measured, Small

TINY = 2, ((8, 128), (4, 128), (2, 256), (2, 256))
"""Frames and levels whose checks Triton's interpreter is through with in seconds."""


@dataclass(frozen=True)
class Checked:
    operation: str
    cases: tuple[str, ...]
    """Names of all those that come to the same small call."""
    implementation: str
    measured: Measured


def cannot(device: torch.device | str) -> str | None:
    """Why no kernel can run here on that kind of device, or None."""
    kind = torch.device(device).type
    if not gpu.INSTALLED:
        return "triton is not installed; pip install triton"
    if kind == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    if kind != "cuda" and not gpu.interpreted():
        return "on a CPU kernels run in Triton's interpreter only; set TRITON_INTERPRET=1"
    return None


def check_all(
    device: torch.device | str,
    dtype: torch.dtype,
    share: tuple[int, int] = (0, 1),
    of: Iterable[Case] | None = None,
) -> Iterator[Checked]:
    """Checks every implementation of the operations that have a kernel; each result as it is there.

    `of`: the calls whose code is checked, all of cases.py unless given, on a CPU tiny ones. `share`
    (i, n): the i-th of n parts of the work, from 0, without a check in common: most of the time
    goes into compiling, so n processes are nearly n times as fast.
    """
    device = torch.device(device)
    if of is None:
        of = cases() if device.type == "cuda" else cases(*TINY)
    part, parts = share
    for op, small, implementations, reference, names in _distinct(of, device, dtype)[part::parts]:
        for implementation in implementations:
            error, part_error = trust.bounds(device, dtype)
            if implementation.small is None:
                # PyTorch's round between operations
                part_error *= 2
            measured = trust.measure(
                implementation.run, reference.run, small, device, dtype, (error, part_error)
            )
            yield Checked(op, tuple(names), implementation.name, measured)


def _distinct(
    of: Iterable[Case], device: torch.device, dtype: torch.dtype
) -> list[tuple[str, Small, list[Implementation], Implementation, dict[str, None]]]:
    """Operations, small calls, those that can take them, their definition, the cases' names."""
    found: dict = {}
    for case in of:
        kernel = next((i for i in case.table if i.small is not None), None)
        if kernel is None:
            continue
        # nothing is computed yet, and no memory taken
        with FakeTensorMode(), torch.no_grad():
            args, options = case.draw(str(device), dtype)
            if kernel.refuses(*args, **options) is not None:
                continue
            *others, reference = case.table
            able = [i for i in others if i.refuses(*args, **options) is None]
            small = kernel.small(*args, **options)
        new = case.operation, small, able, reference, {}
        found.setdefault((case.operation, small), new)[-1][case.name] = None
    return list(found.values())
