"""Checks every kernel against its definition, for `python -m anyv2v.kernels.explain --check`."""

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
"""Arguments `frames` and `levels` of `cases`, so small that Triton's interpreter takes seconds."""


@dataclass(frozen=True)
class Checked:
    """The result of checking one implementation of an operation on one small call."""

    operation: str
    """Name of the operation, such as "geglu"."""
    cases: tuple[str, ...]
    """Names of all cases for which the small call stands, as in `Case.name`."""
    implementation: str
    """Name of the implementation, such as "triton"."""
    measured: Measured
    """Its errors, and the bounds that they must keep."""


def cannot(device: torch.device | str) -> str | None:
    """Returns the reason why no kernel can run on devices of this type here, or None.

    Only the type of `device` matters ("cuda" or "cpu"), not its index.
    """
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
    """Checks the implementations of every operation that has a Triton kernel; yields each result.

    Each implementation that can run a call, the definition excepted, is compared with the
    definition in float64 on a small call of the same compiled code. `of`: the calls; None takes
    those of cases.py, and tiny ones on a CPU. `share` (i, n): do the i-th of n equal parts of the
    work, counted from 0. Most of the time is spent on compiling, so n processes are nearly n times
    as fast.
    """
    device = torch.device(device)
    if of is None:
        of = cases() if device.type == "cuda" else cases(*TINY)
    part, parts = share
    for op, small, implementations, reference, names in _distinct(of, device, dtype)[part::parts]:
        for implementation in implementations:
            error, part_error = trust.bounds(device, dtype)
            if implementation.small is None:
                # PyTorch's implementations round between operations
                part_error *= 2
            measured = trust.measure(
                implementation.run, reference.run, small, device, dtype, (error, part_error)
            )
            yield Checked(op, tuple(names), implementation.name, measured)


def _distinct(
    of: Iterable[Case], device: torch.device, dtype: torch.dtype
) -> list[tuple[str, Small, list[Implementation], Implementation, dict[str, None]]]:
    """Lists (operation, small call, implementations that can run it, definition, case names)."""
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
