"""What a stage of the work took: a line in the log with its seconds and its peak of memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anyv2v.runtime.memory import peak_bytes


@contextmanager
def stage(log: logging.Logger, device: torch.device, what: str, *values: object) -> Iterator[None]:
    """Logs, at level INFO, how long the block took and the most memory that was in use meanwhile.

    log: the logger of the module that does the work. what, values: the name of the stage as a
    message and its arguments, as in `Logger.info`. The memory is that of `device`: on a GPU what
    PyTorch allocated there at most during the block, for which its statistics of the peak are
    reset, and whose work is waited for at the end; on a CPU that of the process, so far. If the
    level is not enabled nothing is measured. A block that raises is not logged.
    """
    if not log.isEnabledFor(logging.INFO):
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    yield
    if on_gpu:
        torch.cuda.synchronize(device)
    took, peak = time.perf_counter() - began, peak_bytes(device)
    memory = "" if peak is None else f", peak {peak / 1e9:.2f} GB{'' if on_gpu else ' so far'}"
    log.info(f"{what}: %.2f s%s", *values, took, memory)
