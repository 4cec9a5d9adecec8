"""CUDA streams besides the current one, which are reused as long as the process lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_IDLE: dict[tuple[int, str], list[torch.cuda.Stream]] = {}


@contextmanager
def side_stream(device: torch.device, use: str) -> Iterator[torch.cuda.Stream]:
    """Yields a CUDA stream that no other caller gets inside the block; later calls reuse it.

    PyTorch's caching allocator keeps freed memory for the stream that it was allocated on, and
    PyTorch hands out 32 streams in turn: with a new stream for each run, no run would find the
    memory that earlier runs have freed. use: name of the purpose, such as "capture"; calls with the
    same name need about the same memory, so they share a pool of streams.
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
