"""Triton's launches, compiled as for an sm_90 and run by the interpreter on tensors of the CPU.

Triton's own launcher decides what is a constant and which numbers are multiples of 16. The process
must not have TRITON_INTERPRET set when kernels are defined.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver, jit

from tests.kernels.ptx.machine import Machine
from tests.kernels.ptx.memory import Global
from tests.kernels.ptx.parse import parse

NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}
Values = dict[str, Any]
"""What a kernel is called with, by name."""


class _Driver:
    """Says that there is an sm_90."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextlib.contextmanager
def interpreted(
    change: Callable[[str, Values], tuple[str, Values]] = lambda ptx, values: (ptx, values),
) -> Iterator[None]:
    """Within, kernels run as compiled, and what `torch.empty` gives is NaN until written.

    `change` may falsify the PTX and the values of a launch. What was compiled has no machine code:
    the process can launch nothing on a GPU afterwards.
    """
    compiled, cubin, empty = jit.JITFunction.run, CUDABackend.make_cubin, torch.empty

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made = compiled(kernel, *args, grid=grid, warmup=True, **options)
        values = dict(zip(kernel.arg_names, args, strict=False)) | options
        ptx, values = change(made.asm["ptx"], values)
        # what Triton made a constant of is no argument
        types = {k: t for k, t in made.src.signature.items() if t != "constexpr"}
        arguments = {name: (kind, values[name]) for name, kind in types.items()}
        # two more pointers, to scratch memory that none of our kernels asks for
        arguments |= {"scratch": ("i64", 0), "profile": ("i64", 0)}
        execute(ptx, grid, 32 * made.metadata.num_warps, made.metadata.shared, arguments)

    def poisoned(*size: Any, **options: Any) -> Tensor:
        x = empty(*size, **options)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        # machine code takes long and is not needed; a cache without it is useless to others
        triton.knobs.cache.dir = cache
        driver.set_active(_Driver())
        jit.JITFunction.run, CUDABackend.make_cubin, torch.empty = run, lambda *_: b"", poisoned
        try:
            yield
        finally:
            jit.JITFunction.run, CUDABackend.make_cubin, torch.empty = compiled, cubin, empty


@contextlib.contextmanager
def rewritten(
    kernel: jit.JITFunction, old: str, new: str, within: jit.JITFunction | None = None
) -> Iterator[None]:
    """Within, a kernel, or the function `within` that it calls, has another line in its source."""
    function = within or kernel
    source = function.src
    if old not in source:
        raise ValueError(f"{function.__name__} has no {old!r} any more")
    try:
        function._unsafe_update_src(source.replace(old, new))
        # what is compiled is the kernel, with the source that the function had
        kernel.device_caches.clear()
        yield
    finally:
        function._unsafe_update_src(source)
        kernel.device_caches.clear()


def execute(
    ptx: str,
    grid: tuple[int, ...],
    threads: int,
    shared_size: int,
    arguments: Mapping[str, tuple[str, Any]],
) -> None:
    """Run a kernel on arguments, name -> (type, value); tensors are written in place.

    Only bytes that are elements of a tensor exist.
    """
    memory, values, placed = Global(), [], {}
    for kind, value in arguments.values():
        if isinstance(value, Tensor):
            # the same tensor twice is one; of tensors in one storage each gets a copy of it
            key = (value.data_ptr(), value.shape, value.stride())
            if key not in placed:
                placed[key] = (value, *_place(value, memory))
            offset = value.storage_offset() * value.element_size()
            values.append(np.array([placed[key][1] + offset]))
        else:
            values.append(np.array([value], NUMBERS[kind]))
    Machine(parse(ptx), grid, threads, memory, shared_size).run(values)
    for tensor, start, exists in placed.values():
        _storage(tensor)[exists] = memory.copy(start, len(exists))[exists]


def _storage(x: Tensor) -> np.ndarray:
    """All the bytes that x is a part of."""
    return torch.tensor([], dtype=torch.uint8).set_(x.untyped_storage()).numpy()


def _place(x: Tensor, memory: Global) -> tuple[int, np.ndarray]:
    """Where a copy of its storage begins, and which bytes of that are its elements."""
    data, size = _storage(x), x.element_size()
    at = torch.arange(len(data) // size).as_strided(x.shape, x.stride(), x.storage_offset())
    exists = np.zeros((len(data) // size, size), bool)
    exists[at.flatten().numpy()] = True
    exists = exists.reshape(-1)
    return memory.allocate(data, exists, x.untyped_storage().data_ptr()), exists
