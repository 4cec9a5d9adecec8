"""The choice of a device and a dtype for the networks."""

from __future__ import annotations

import torch

from anyv2v import checks
from anyv2v.errors import InputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes in which networks can run."""


def choose_device(device: str | torch.device | None) -> torch.device:
    """Returns `device` as a torch.device; None chooses CUDA if there is a GPU, else the CPU.

    Raises InputError if the device is neither "cpu" nor "cuda", or is a GPU that this machine
    lacks.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"device: {checks.shown(device)} is neither cpu nor cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {device} is neither cpu nor cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device: {device} was asked for, but there are {count} here; use cpu")
    return device


def choose_dtype(
    dtype: torch.dtype | None, device: torch.device, half: torch.dtype = torch.float16
) -> torch.dtype:
    """Returns `dtype`; None chooses `half` on a GPU and float32 on a CPU.

    Raises InputError if the dtype is not one of `DTYPES`.
    """
    if dtype is None:
        return half if device.type == "cuda" else torch.float32
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise InputError(
            f"dtype: {checks.shown(dtype)} is not one of {', '.join(map(str, DTYPES))}"
        )
    return dtype
