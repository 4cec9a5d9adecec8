"""What every Triton kernel asks of the machine and of its tensors."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def refuses(*tensors: Tensor | None) -> str | None:
    """Why no kernel can take these tensors, looking at devices, dtypes and gradients; or None.

    Triton need not be installed to ask.
    """
    given = [t for t in tensors if t is not None]
    device, dtype = given[0].device, given[0].dtype
    if device.type != "cuda":
        return f"it needs a GPU, and the tensors are on {device.type}"
    if any(t.device != device for t in given):
        return "the tensors are on different devices"
    if any(t.dtype != dtype for t in given):
        return f"the tensors have different dtypes: {', '.join(str(t.dtype) for t in given)}"
    if dtype not in DTYPES:
        return f"it is for float16, bfloat16 and float32, not {dtype}"
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return "it has no gradients"
    if given[0].numel() == 0:
        return "the input is empty"
    if find_spec("triton") is None:
        return "triton is not installed"
    # without a device, tensors that only pretend to be on one are asked about
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0 or more"
    return None
