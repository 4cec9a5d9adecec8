"""The conditions that all Triton kernels here put on a call, checked without importing Triton."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""The dtypes that kernels accept."""


def interpreted() -> bool:
    """Whether Triton's interpreter is on (TRITON_INTERPRET=1): it runs kernels on a CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(*tensors: Tensor) -> str | None:
    """Returns the reason why no Triton kernel here can take these tensors as inputs, or None."""
    first = tensors[0]
    if not INSTALLED:
        return "triton is not installed; pip install triton"
    if first.device.type != "cuda" and not (first.device.type == "cpu" and interpreted()):
        return f"it needs a CUDA device, not {first.device}"
    if any(x.device != first.device for x in tensors):
        return "its tensors are on several devices"
    if any(x.dtype != first.dtype for x in tensors):
        return "its tensors differ in dtype; cast them to one"
    if first.dtype not in DTYPES:
        return f"{first.dtype} is not float16, bfloat16 or float32"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "it has no gradients; call it under torch.no_grad()"
    if any(x.numel() == 0 for x in tensors):
        return "a tensor is empty"
    if any(x.stride(-1) != 1 and x.shape[-1] != 1 for x in tensors):
        return "the last dim is not contiguous in memory; call .contiguous() first"
    if any(_span_of_a_row(x) >= 2**31 for x in tensors):
        return "one row spans 2^31 elements or more; use fewer tokens"
    if first.device.type == "cuda" and family(first.device) is None:
        return "the GPU is older than compute capability 8.0"
    return None


def avoids_interpreter(x: Tensor, *_: Any, **__: Any) -> str | None:
    """Returns a reason not to choose a kernel automatically if it would run in the interpreter.

    Triton's interpreter, which runs kernels on a CPU, is slow. Returns None if x is on a CUDA
    device. All further arguments are ignored.
    """
    return None if x.device.type == "cuda" else "Triton's interpreter is for tests"


def avoids(*tensors: Tensor) -> str | None:
    """Returns a reason not to choose automatically a kernel that gains by tensor cores, or None.

    The reason is that the first tensor is float32, or that Triton's slow interpreter would run the
    kernel.
    """
    if (reason := avoids_interpreter(*tensors)) is not None:
        return reason
    if tensors[0].dtype == torch.float32:
        return "float32 has no tensor cores to gain by"
    return None


def family(device: torch.device) -> str | None:
    """Returns the key in `aot.TARGETS` whose tile sizes suit a device; None if the GPU is too old.

    A GPU needs compute capability 8.0. For a CPU, or without CUDA, the answer is "sm_90".
    """
    if device.type == "cpu" or not torch.cuda.is_available():
        # interpreted, or a tensor that only pretends to be on a GPU
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    # unlike get_device_capability, a constant to torch.compile
    major = torch.cuda.get_device_properties(device).major
    if major < 8:
        return None
    # 12 has the instructions and the shared memory of 8
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def _span_of_a_row(x: Tensor) -> int:
    """Counts the elements from the first to the last of x[0], which kernels address in 32 bits."""
    return sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )


def on(x: Tensor) -> AbstractContextManager:
    """Returns a context that launches kernels on the GPU of x; it does nothing for a CPU tensor."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
