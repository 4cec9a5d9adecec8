"""Estimates of free memory, so that a job that cannot fit is refused before it begins."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable

import torch

from anyv2v.errors import InputError


def free_bytes(device: torch.device) -> int:
    """Returns about how many bytes can still be allocated on a device.

    On a GPU this includes what PyTorch has cached. On a CPU it is what the system reports as
    available, within the limit of `ulimit -v`; where the system reports nothing, it is all
    installed memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
        return available if (limit := _within_limit()) is None else min(available, limit)
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size_text(count: int) -> str:
    """Returns a number of bytes as a text, such as "1.24 GB", which is not zero unless it is."""
    if abs(count) >= 5e6:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if abs(count) >= 5e3 else f"{count} bytes"


def _within_limit() -> int | None:
    """Bytes of address space that `ulimit -v` leaves to this process; None if it sets no limit."""
    with open("/proc/self/limits", encoding="ascii") as file:
        limits = [line.split()[3] for line in file if line.startswith("Max address space")]
    if not limits or limits[0] == "unlimited":
        return None
    with open("/proc/self/statm", encoding="ascii") as file:
        return max(0, int(limits[0]) - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))


def peak_bytes(device: torch.device) -> int | None:
    """Returns the most bytes that were in use at one time; None where the system does not tell.

    On a GPU these are what PyTorch has allocated on it since its statistics of the peak were reset,
    on a CPU those of the process since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


FRAMES_AT_ONCE = 4
"""The most frames that the VAE encodes or decodes at a time.

So many keep a GPU busy, and take less memory than the denoising network does after them.
"""


def frames_at_once(needed: int, device: torch.device) -> int:
    """Returns how many frames the VAE encodes or decodes at a time, 1 to `FRAMES_AT_ONCE`.

    needed: the least bytes that each frame takes; the result is what fits into the free memory of
    `device`. On a CPU it is always 1, because more are no faster.
    """
    if device.type == "cpu":
        return 1
    # `needed` is a lower bound, so each frame is given twice as much
    return max(1, min(FRAMES_AT_ONCE, free_bytes(device) // (2 * needed)))


def comfortable_bytes(least: int, captured: bool) -> int:
    """Returns how many bytes should be free for a job that needs at least `least` bytes.

    That is twice as many, or four times with `captured` CUDA graphs, which hold as much memory
    again.
    """
    return (4 if captured else 2) * least


def require_memory(
    needed: Callable[[int, int], int],
    size: tuple[int, int],
    frames: int,
    multiple: int,
    device: torch.device,
    freeable: int = 0,
) -> None:
    """Raises InputError, with a size that would fit, if a job's memory is not free on `device`.

    needed: (width, height) of the frames in pixels -> bytes. size: the (width, height) of the job.
    frames: the number of its frames, for the message. multiple: sides of frames must be multiples
    of it. freeable: bytes that count as free, because the job can move what they hold to the host.
    """
    width, height = size
    need, free = needed(width, height), free_bytes(device) + freeable
    if need <= free:
        return
    # memory grows with the area
    scale = 0.95 * math.sqrt(free / need)
    fits = [max(multiple, int(x * scale) // multiple * multiple) for x in size]
    raise InputError(
        f"not enough memory: {width}x{height} with {frames} frames needs at least "
        f"{need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {fits[0]}x{fits[1]} would fit"
    )
