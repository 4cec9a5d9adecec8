"""Memory that a kernel is handed holds NaN, and so does what lies around it."""

import math

import pytest
import torch
from torch._guards import detect_fake_mode

from anyv2v.kernels import gpu

GUARD = 2**16


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """These tests are the longer check; test_check.py switches that of the first launch on."""
    monkeypatch.setenv("ANYV2V_CHECK", "0")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What `torch.empty` gives is NaN until written, and writing beside it fails the test."""
    empty, allocated = torch.empty, []

    def poisoned_empty(*size, dtype=None, device=None, **options):
        dtype = dtype or torch.get_default_dtype()
        real = torch.device(device or "cpu").type in ("cpu", "cuda") and not detect_fake_mode()
        if options or not dtype.is_floating_point or not real:
            return empty(*size, dtype=dtype, device=device, **options)
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        count = math.prod(shape)
        memory = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
        allocated.append(memory)
        return memory[GUARD : GUARD + count].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned_empty)
    yield
    for memory in allocated:
        assert memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all(), "written beside"


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """In Triton's interpreter, a kernel that reads NaN has read beside its inputs."""
    if not (gpu.INSTALLED and gpu.interpreted()):
        return
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    load = InterpreterBuilder.create_masked_load

    def watched_load(self, pointers, mask, *rest):
        loaded = load(self, pointers, mask, *rest)
        data, dtype = loaded.data, loaded.dtype.scalar
        if dtype == tl.bfloat16:
            data = (data.astype("uint32") << 16).view("float32")
        assert not (dtype.is_floating() and (data != data).any()), "read beside"
        return loaded

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
