"""Refusing early what cannot fit, instead of being killed halfway."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch

from anyv2v.errors import InputError


def free_bytes(device: torch.device) -> int:
    """What could still be allocated on a device, about."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return min(int(lines["MemAvailable"].split()[0]) * 1024, _within_limit())
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _within_limit() -> float:
    """Bytes of address space that `ulimit -v` leaves to this process."""
    with open("/proc/self/limits", encoding="ascii") as file:
        limits = [line.split()[3] for line in file if line.startswith("Max address space")]
    if not limits or limits[0] == "unlimited":
        return math.inf
    with open("/proc/self/statm", encoding="ascii") as file:
        return max(0, int(limits[0]) - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))


FRAMES_AT_ONCE = 4
"""Of the autoencoder at most: they fill a GPU, and take less than the network does after them."""


def frames_at_once(needed: int, device: torch.device) -> int:
    """How many frames the autoencoder takes together, of which each needs at least `needed` bytes.

    On a CPU one: more are no faster.
    """
    if device.type == "cpu":
        return 1
    # the least that is needed, twice
    return max(1, min(FRAMES_AT_ONCE, free_bytes(device) // (2 * needed)))


def comfortable(least: int, captured: bool) -> int:
    """What a job should have that needs `least` bytes at least; graphs hold as much again."""
    return (4 if captured else 2) * least


def require(
    needed: Callable[[int, int], int],
    size: tuple[int, int],
    frames: int,
    factor: int,
    device: torch.device,
    freeable: int = 0,
) -> None:
    """InputError if needed(width, height) bytes are not free, with a size that would fit.

    `factor` divides every size that works. `freeable`: bytes that count as free.
    """
    width, height = size
    need, free = needed(width, height), free_bytes(device) + freeable
    if need <= free:
        return
    # memory grows with the area
    scale = 0.95 * math.sqrt(free / need)
    fits = [max(factor, int(x * scale) // factor * factor) for x in size]
    raise InputError(
        f"not enough memory: {width}x{height} with {frames} frames needs at least "
        f"{need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {fits[0]}x{fits[1]} would fit"
    )
