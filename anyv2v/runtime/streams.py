"""Streams beside the current one, kept for the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_IDLE: dict[tuple[int, str], list[torch.cuda.Stream]] = {}


@contextmanager
def side_stream(device: torch.device, use: str) -> Iterator[torch.cuda.Stream]:
    """A stream of a CUDA device that nobody else has meanwhile; afterwards the next may have it.

    Memory that the allocator keeps belongs to the stream it was allocated on, and PyTorch gives out
    32 streams in turn: a new one for each run would leave each run's memory where no later run
    finds it. Those of one `use` need about the same memory, so they have the same streams.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    idle = _IDLE.setdefault((index, use), [])
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(index)
    try:
        yield stream
    finally:
        idle.append(stream)
