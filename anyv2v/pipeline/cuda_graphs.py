"""Forward passes captured in CUDA graphs: a step's launches recorded once, replayed afterwards.

A pass of the network is well over a thousand kernels; a graph starts them with one call of the
host. It repeats them on the very memory that they were captured with, so a captured pass has inputs
of its own, into which each call is copied, and what it gives is copied out.

Python does not run in a replay. So a pass is captured for each kind of call: which conditions, what
shape, which taps with which sites (`Captured.signature`; others are called, so their passes are not
captured). An edit has three kinds of step, or fewer.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Conditions
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Captured, Kept, Recorded, Taps
from anyv2v.runtime.streams import side_stream

Forward = Callable[..., Tensor]
"""(latents, t, conditions, taps) -> a prediction; t is a number, or a tensor without dims."""

Outputs = tuple[Tensor | None, Kept]
"""v, unless recording ended the pass before; and what was recorded."""

T = TypeVar("T")

log = logging.getLogger(__name__)
_SAID: set[str] = set()

_ALONE = threading.Lock()
"""Held by who captures, replays or destroys a graph.

All register with the one generator of random numbers of their device, and PyTorch has no lock
there. During a capture it is marked as captured: some versions refuse replays of other threads.
"""


def wanted(graphs: bool | None, device: torch.device) -> bool | None:
    """Whether to capture on a device: None, where it can be; True, or else raise.

    What the caller asks for, else $ANYV2V_GRAPHS. InputError if it cannot be had.
    """
    graphs = None if graphs is None else checks.flag("graphs", graphs)
    asked = os.environ.get("ANYV2V_GRAPHS")
    if asked not in (None, "0", "1"):
        raise InputError(f"ANYV2V_GRAPHS: {asked!r} is not 0 or 1")
    if graphs is None and asked is not None:
        graphs = asked == "1"
    if graphs and device.type != "cuda":
        raise InputError(f"graphs: they need a CUDA device, not {device}")
    return graphs


@contextmanager
def graphed(forward: Forward, device: torch.device, graphs: bool | None) -> Iterator[Forward]:
    """Inside, a `forward` for one run and one thread; `graphs` as `wanted` gave it.

    Its graphs and their memory are its own, and gone afterwards.
    """
    if device.type != "cuda" or graphs is False:
        yield forward
        return
    with side_stream(device, "capture") as stream:
        backend = Cuda(stream)
        passes = Graphs(forward, device, backend, strict=bool(graphs))
        try:
            yield passes
        finally:
            passes.clear()
            backend.clear()


class Backend(Protocol):
    """What captures, for one run."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """run() as it will be captured, so that what happens only once has happened."""

    def capture(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Outputs of run(), still without data, and what computes them, each time anew."""


class Cuda:
    """Captures on a stream, into a pool of memory that the graphs of one run share.

    They may share it because no graph reads what another left there: inputs lie outside, and what
    is still needed of the outputs is copied out before the next replay, on the same stream.
    """

    def __init__(self, stream: torch.cuda.Stream):
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def capture(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        with _ALONE:
            if not self._graphs:
                # the pools of past runs are kept until memory runs out, and during a capture
                # they cannot be given back; refused while somebody else captures
                with suppress(RuntimeError):
                    torch.cuda.empty_cache()
            outputs, graph = capture(run, self._stream, self._pool)
        self._graphs.append(graph)

        def replay() -> None:
            with _ALONE:
                graph.replay()

        return outputs, replay

    def clear(self) -> None:
        """Ends its graphs, even if a traceback still holds them.

        In some versions of PyTorch a graph that ends frees what cuBLAS works in on this stream,
        which the next run will have.
        """
        with _ALONE:
            for graph in self._graphs:
                graph.reset()
            self._graphs.clear()


def capture(
    run: Callable[[], T], stream: torch.cuda.Stream, pool: tuple[int, int]
) -> tuple[T, torch.cuda.CUDAGraph]:
    """What run() gives, still without data, and the graph that computes it.

    If it cannot be captured, that is raised, and the process can capture and draw as before.
    """
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        try:
            # other threads may go on with what a capture must not do
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        except RuntimeError:
            _abandon(graph, stream, pool, began=False)
            raise
        try:
            outputs = run()
        except BaseException:
            # the stream has to leave the capture, and what went wrong is told already
            with suppress(RuntimeError):
                _end(graph, stream, pool)
                graph.reset()
            raise
        _end(graph, stream, pool)
    return outputs, graph


def _end(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        _abandon(graph, stream, pool, began=True)
        raise


def _abandon(
    graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: tuple[int, int], began: bool
) -> None:
    """Does what `capture_end` and the graph's destructor leave undone after a failure.

    How much that is depends on PyTorch's version (CUDAGraph.cpp). Up to 2.11 an invalid capture
    throws before its allocator is told that it is over: it then gives no memory back, and
    `empty_cache` asserts. Later versions tell it, and the latest also release the pool.
    """
    # the allocators keep a pointer to the graph, and some destructors would release the pool once
    # more: it is never destroyed, not even at the end of the process
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))
    # both have no public name; a PyTorch without them is left as it is
    if hasattr(torch._C, "_cuda_endAllocateToPool") and hasattr(torch._C, "_cuda_releasePool"):
        try:
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            began = True
        except RuntimeError:
            pass  # it was told, or nothing was begun
        if began:
            # once for the `capture_begin` that took hold of it
            torch._C._cuda_releasePool(stream.device_index, pool)
    # until a capture ends well, the generator of random numbers takes itself for captured
    with suppress(RuntimeError):
        x = torch.ones((), device=stream.device)
        mended = torch.cuda.CUDAGraph()
        mended.capture_begin(capture_error_mode="thread_local")
        x.zero_()
        mended.capture_end()


class Graphs:
    """A `forward` that captures. The first call of a kind warms up, the second is captured.

    Both are answered like any other, so nothing is computed for nothing. If a pass cannot be
    captured, all further ones run eagerly: `reason` says why, and so does the log, once in a
    process; `strict` raises instead.
    """

    def __init__(
        self, forward: Forward, device: torch.device, backend: Backend, strict: bool = False
    ):
        self._forward, self._device = forward, device
        self._backend, self._strict = backend, strict
        self._passes: dict[Hashable, _Pass] = {}
        self.reason: str | None = None

    def __call__(
        self, latents: Tensor, t: float, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        signature = taps.signature() if isinstance(taps, Captured) else None
        if signature is None or self.reason is not None:
            return self._forward(latents, t, conditions, taps)
        # a pass holds its conditions, so no others get their id
        kind = id(conditions), latents.shape, latents.dtype, _kind_of(t), signature
        try:
            if kind not in self._passes:
                own = _Pass(self._forward, self._device, latents, t, conditions, taps)
                self._passes[kind] = own
            v, kept = self._passes[kind](self._backend, latents, t, taps)
        except RuntimeError as error:
            if self._strict:
                raise RuntimeError(f"a step could not be captured: {error}") from error
            self.reason = str(error)
            self.clear()
            _say(self.reason)
        else:
            taps.leaves().update(kept)
            if v is None:
                raise Recorded
            return v
        # what is wrong with the call itself goes wrong here again
        return self._forward(latents, t, conditions, taps)

    def clear(self) -> None:
        """Gives the memory back."""
        with _ALONE:
            self._passes.clear()


def _say(reason: str) -> None:
    if reason in _SAID:
        return
    _SAID.add(reason)
    # CUDA's messages go on with general advice
    first = (reason.strip() or "no reason was given").splitlines()[0]
    log.warning("anyv2v: no CUDA graphs in this run, its steps are launched one by one: %s", first)


class _Pass:
    """One kind of call, on memory of its own."""

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        latents: Tensor,
        t: float,
        conditions: Conditions,
        taps: Captured,
    ):
        self._forward, self._conditions = forward, conditions
        self._taps = taps.reading(_copied(taps.reads()))
        self._latents = latents.to(device, copy=True)
        # whole numbers and fractions are captured apart: embeddings may differ in the last bit
        self._t = torch.zeros((), dtype=_kind_of(t), device=device)
        self._warm = False
        self._captured: tuple[Outputs, Callable[[], object]] | None = None

    def __call__(self, backend: Backend, latents: Tensor, t: float, taps: Captured) -> Outputs:
        self._load(latents, t, taps)
        if not self._warm:
            outputs = backend.warm_up(self._run)
            self._warm = True
        else:
            if self._captured is None:
                self._captured = backend.capture(self._run)
            outputs, replay = self._captured
            replay()
        v, kept = outputs
        # the next call writes over them
        return None if v is None else v.clone(), _copied(kept)

    def _load(self, latents: Tensor, t: float, taps: Captured) -> None:
        self._latents.copy_(latents)
        self._t.fill_(t)
        for site, parts in taps.reads().items():
            for own, x in zip(self._taps.reads()[site], parts, strict=True):
                own.copy_(x)

    def _run(self) -> Outputs:
        taps, v = self._taps.reading(self._taps.reads()), None
        with suppress(Recorded):
            v = self._forward(self._latents, self._t, self._conditions, taps)
        return v, taps.leaves()


def _kind_of(t: float) -> torch.dtype:
    return torch.int64 if isinstance(t, int) else torch.float64


def _copied(kept: Kept) -> Kept:
    return {site: tuple(x.clone() for x in parts) for site, parts in kept.items()}
