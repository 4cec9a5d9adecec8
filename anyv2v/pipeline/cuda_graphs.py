"""Forward passes in CUDA graphs: a pass's kernel launches are captured once and then replayed.

A forward pass launches well over a thousand kernels; the replay of a graph launches all of them
with one call from the host. The kernels use the memory addresses of the capture. So each captured
pass has input tensors of its own, into which the arguments of a call are copied, and its outputs
are copied out.

Python does not run in a replay. So one graph is captured for each kind of call, which is given by
its conditions, the shape and dtype of the latents, the type of the timestep, and the cache key of
the taps (`Capturable.cache_key`). Taps without a key have to be called, so passes with them are not
captured. An edit has at most three kinds of step.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.backbones.base import Conditions
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Capturable, Features, Recorded, Taps
from anyv2v.runtime.streams import side_stream

Forward = Callable[..., Tensor]
"""(latents, t, conditions, taps) -> a prediction; the timestep t is a number, or a tensor ()."""

Outputs = tuple[Tensor | None, Features]
"""A pass's prediction, None if the exception `Recorded` ended it early, and recorded features."""

if TYPE_CHECKING:
    # the type exists in PyTorch's stubs alone
    from torch.cuda import _POOL_HANDLE as PoolHandle

T = TypeVar("T")

log = logging.getLogger(__name__)
_WARNED: set[str] = set()
"""Reasons that were logged already, so that each is logged once in a process."""

_LOCK = threading.Lock()
"""Held while a graph is captured, replayed or destroyed.

All graphs register with their device's one random generator, and PyTorch has no lock there. During
a capture the generator is marked as capturing, and some versions then refuse the replays of other
threads.
"""


def resolve_graphs(graphs: bool | None, device: torch.device) -> bool | None:
    """Returns the setting for graphs: True (required), False (off), or None (where possible).

    If `graphs` is None, the environment variable ANYV2V_GRAPHS decides, if it is set: 1 is True, 0
    is False. Raises InputError for another value of it, if graphs are required on a `device`
    without CUDA, and if `graphs` is no bool.
    """
    graphs = None if graphs is None else checks.flag("graphs", graphs)
    variable = os.environ.get("ANYV2V_GRAPHS")
    if variable not in (None, "0", "1"):
        raise InputError(f"ANYV2V_GRAPHS: {variable!r} is not 0 or 1")
    if graphs is None and variable is not None:
        graphs = variable == "1"
    if graphs and device.type != "cuda":
        raise InputError(f"graphs: they need a CUDA device, not {device}")
    return graphs


@contextmanager
def captured_forward(
    forward: Forward, device: torch.device, graphs: bool | None
) -> Iterator[Forward]:
    """Context of one run in one thread: yields `forward`, captured in CUDA graphs where possible.

    graphs: the result of `resolve_graphs`; with False, or on a device without CUDA, `forward`
    itself is yielded. The graphs and their memory are freed when the context is left.
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
    """The means by which `Graphs` captures a pass: `Cuda`, or in tests one that needs no GPU."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Returns run(), called where it will be captured, so that one-time work is done before."""
        ...

    def capture(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Captures run(); returns its outputs and a replay function.

        The outputs hold no data until the replay function has been called. Raises RuntimeError if
        run() cannot be captured.
        """
        ...


class Cuda:
    """Captures CUDA graphs on one stream, into one memory pool that all graphs of a run share.

    Sharing the pool is safe because no graph reads what another wrote there: inputs are outside of
    the pool, and outputs are copied out before the next replay, on the same stream.
    """

    def __init__(self, stream: torch.cuda.Stream):
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Returns run(), called on the capturing stream, so that libraries initialize for it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def capture(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Captures run() in a graph; returns its outputs, and a function that replays the graph.

        The outputs hold no data before the first replay. Raises the error if the capture fails.
        """
        with _LOCK:
            if not self._graphs:
                # the allocator keeps the pools of past runs until memory runs out, but cannot free
                # them during a capture. This raises while another thread captures
                with suppress(RuntimeError):
                    torch.cuda.empty_cache()
            outputs, graph = capture(run, self._stream, self._pool)
        self._graphs.append(graph)

        def replay() -> None:
            with _LOCK:
                graph.replay()

        return outputs, replay

    def clear(self) -> None:
        """Destroys all graphs now, even if a traceback still refers to them.

        In some versions of PyTorch the destruction of a graph frees cuBLAS's workspace of its
        stream. If that came later, the next run, which gets the same stream, could be using it.
        """
        with _LOCK:
            for graph in self._graphs:
                graph.reset()
            self._graphs.clear()


def capture(
    run: Callable[[], T], stream: torch.cuda.Stream, pool: PoolHandle
) -> tuple[T, torch.cuda.CUDAGraph]:
    """Captures run() on `stream`, into the memory pool `pool`; returns its result and the graph.

    Tensors in the result hold no data before the graph is replayed. If run() cannot be captured,
    the error is raised, and PyTorch's allocator and random generator are left in a state in which
    the process can go on, and capture again.
    """
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        try:
            # thread_local: other threads may go on with calls that a capture forbids
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        except RuntimeError:
            _abandon(graph, stream, pool, began=False)
            raise
        try:
            outputs = run()
        except BaseException:
            # the stream has to leave the capture; an error of that would hide the first one
            with suppress(RuntimeError):
                _end(graph, stream, pool)
                graph.reset()
            raise
        _end(graph, stream, pool)
    return outputs, graph


def _end(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: PoolHandle) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        _abandon(graph, stream, pool, began=True)
        raise


def _abandon(
    graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: PoolHandle, began: bool
) -> None:
    """Cleans up what `capture_end` and the graph's destructor leave undone after a failure.

    How much that is depends on PyTorch's version (CUDAGraph.cpp). Up to 2.11 an invalid capture
    throws before it ends the allocator's use of the pool: the allocator then frees no memory, and
    `empty_cache` asserts. Later versions end it, and the latest also release the pool.
    """
    # the allocator keeps a pointer to the graph, and some destructors would release the pool a
    # second time: so the graph is never destroyed, not even at the end of the process
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))
    # neither has a public name; with a PyTorch without them nothing can be done here
    if hasattr(torch._C, "_cuda_endAllocateToPool") and hasattr(torch._C, "_cuda_releasePool"):
        try:
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            began = True
        except RuntimeError:
            pass  # PyTorch has ended it itself, or the capture never began
        if began:
            # `capture_begin` has counted one more use of the pool
            torch._C._cuda_releasePool(stream.device_index, pool)
    # the random generator stays marked as capturing until a capture ends without error: this one
    with suppress(RuntimeError):
        x = torch.ones((), device=stream.device)
        valid = torch.cuda.CUDAGraph()
        valid.capture_begin(capture_error_mode="thread_local")
        x.zero_()
        valid.capture_end()


class Graphs:
    """A callable like `forward` that captures its passes in CUDA graphs and replays them.

    Calls are of the same kind if they have the same conditions (the same object), shape and dtype
    of latents, type of timestep, and cache key of taps. The first call of a kind runs eagerly, as a
    warm-up; the second is captured and replayed; later ones are replayed. All return predictions as
    usual. If a pass cannot be captured, it and all later ones run eagerly: `reason` says why, and
    so does the log, once in a process. With `strict` a RuntimeError is raised instead.
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
        """Returns exactly what `forward` returns for these arguments."""
        if not isinstance(taps, Capturable) or self.reason is not None:
            return self._forward(latents, t, conditions, taps)
        taps_key = taps.cache_key()
        if taps_key is None:
            return self._forward(latents, t, conditions, taps)
        # no other conditions can get this id: the pass keeps these alive
        cache_key = id(conditions), latents.shape, latents.dtype, _time_dtype(t), taps_key
        try:
            if cache_key not in self._passes:
                new = _Pass(self._forward, self._device, latents, t, conditions, taps)
                self._passes[cache_key] = new
            prediction, features = self._passes[cache_key](self._backend, latents, t, taps)
        except RuntimeError as error:
            if self._strict:
                raise RuntimeError(f"a step could not be captured: {error}") from error
            self.reason = str(error)
            self.clear()
            _warn_once(self.reason)
        else:
            taps.graph_outputs().update(features)
            if prediction is None:
                raise Recorded
            return prediction
        # eagerly, outside of the handler above; if the call itself is wrong, it fails here again
        return self._forward(latents, t, conditions, taps)

    def clear(self) -> None:
        """Drops all captured passes with their input tensors."""
        with _LOCK:
            self._passes.clear()


def _warn_once(reason: str) -> None:
    if reason in _WARNED:
        return
    _WARNED.add(reason)
    # further lines of CUDA's messages are general advice
    first = (reason.strip() or "no reason was given").splitlines()[0]
    log.warning("anyv2v: no CUDA graphs in this run, its steps are launched one by one: %s", first)


class _Pass:
    """The forward pass of one kind of call, with input tensors of its own."""

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        latents: Tensor,
        t: float,
        conditions: Conditions,
        taps: Capturable,
    ):
        self._forward, self._conditions = forward, conditions
        self._taps = taps.with_inputs(_cloned(taps.graph_inputs()))
        self._latents = latents.to(device, copy=True)
        self._t = torch.zeros((), dtype=_time_dtype(t), device=device)
        self._warm = False
        self._captured: tuple[Outputs, Callable[[], object]] | None = None

    def __call__(self, backend: Backend, latents: Tensor, t: float, taps: Capturable) -> Outputs:
        self._load(latents, t, taps)
        if not self._warm:
            outputs = backend.warm_up(self._run)
            self._warm = True
        else:
            if self._captured is None:
                self._captured = backend.capture(self._run)
                shape = "x".join(map(str, self._latents.shape))
                log.info("CUDA graphs: captured a step on latents of %s", shape)
            outputs, replay = self._captured
            replay()
        prediction, features = outputs
        # copies, because the next replay overwrites the outputs
        return None if prediction is None else prediction.clone(), _cloned(features)

    def _load(self, latents: Tensor, t: float, taps: Capturable) -> None:
        self._latents.copy_(latents)
        # a fill needs no host tensor whose copy the GPU would have to wait for
        self._t.fill_(t)
        for site, parts in taps.graph_inputs().items():
            for own, x in zip(self._taps.graph_inputs()[site], parts, strict=True):
                own.copy_(x)

    def _run(self) -> Outputs:
        # new taps on the same inputs, so that what the last run recorded is not recorded over
        taps, prediction = self._taps.with_inputs(self._taps.graph_inputs()), None
        with suppress(Recorded):
            prediction = self._forward(self._latents, self._t, self._conditions, taps)
        return prediction, taps.graph_outputs()


def _time_dtype(t: float) -> torch.dtype:
    # whole numbers and fractions are captured apart: embeddings may differ in the last bit
    return torch.int64 if isinstance(t, int) else torch.float64


def _cloned(features: Features) -> Features:
    return {site: tuple(x.clone() for x in tensors) for site, tensors in features.items()}
