"""The cache of a source's recorded features, on the GPU or the host, and their prefetching.

A step's index is its position in the run of the source's inversion; 0 is the noisiest step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from anyv2v.injection.taps import Features
from anyv2v.runtime.streams import side_stream

Placement = Literal["device", "host"]
"""Where a step's features are kept: on the device (the GPU), or in the host's pinned memory."""


class Event(Protocol):
    """A marker in the work of a CUDA stream that the host can wait for (`torch.cuda.Event`)."""

    def synchronize(self) -> None:
        """Blocks the host until the stream's work before this marker is done."""
        ...


@dataclass(frozen=True)
class FeatureCache:
    """Features recorded from one source, by step and site; edits read them and never change them.

    A step's index is its position in the inversion of the source, 0 the noisiest. A site is the
    name of a layer at which `Taps` are called.
    """

    placement: Mapping[int, Placement]
    """Index of each step whose features may be added -> where they are kept."""
    by_step: dict[int, Features] = field(default_factory=dict)
    """Index of each step whose features were added -> site -> tensors."""
    _copies: list[Event] = field(default_factory=list, init=False, repr=False, compare=False)
    """The ends of copies to the host, one for each device and recorded step."""

    def add(self, index: int, features: Features) -> None:
        """Stores the features of step `index`, in host memory if `placement` says so.

        A copy to the host may still be running on return, see `wait`. The features of a step that
        `placement` does not name are dropped.
        """
        if index not in self.placement:
            return
        to_host = self.placement[index] == "host"
        self.by_step[index] = {
            site: tuple(_to_host(x) if to_host else x for x in tensors)
            for site, tensors in features.items()
        }
        if to_host:
            devices = {x.device for tensors in features.values() for x in tensors if x.is_cuda}
            self._copies.extend(torch.cuda.current_stream(d).record_event() for d in devices)

    @property
    def sites(self) -> frozenset[str]:
        """The names of all sites that have features at some step."""
        return frozenset(site for features in self.by_step.values() for site in features)

    def wait(self) -> None:
        """Waits until all copies to the host are done; only then may the host read the features.

        Another thread may be capturing a CUDA graph meanwhile: this waits for events, because a
        synchronization of the whole device would break the capture.
        """
        for event in self._copies:
            event.synchronize()

    def covers(self, index: int, sites: frozenset[str]) -> bool:
        """Whether there are features of all these sites at the step of this index."""
        return index in self.by_step and sites <= self.by_step[index].keys()


NO_FEATURES = FeatureCache({})
"""The cache of a source without recorded features."""


class Playback:
    """Reads a cache step by step in a known order, and prefetches the next step from the host.

    `open_playback` makes one for the time of a run.
    """

    def __init__(
        self,
        cache: FeatureCache,
        order: Sequence[int],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ):
        """Starts to prefetch the first step if there is a stream.

        order: the indices of the steps in the cache, in the order in which they will be fetched.
        device: where the edit needs the features. stream: a CUDA stream for the copies from the
        host; None: features are moved to `device` in `fetch` itself.
        """
        self._cache, self._order, self._device = cache, order, device
        self._fetched: dict[int, tuple[Features, torch.cuda.Event | None]] = {}
        self._stream = stream
        if stream is not None:
            # the current stream may not have finished copying these features to the host
            stream.wait_stream(torch.cuda.current_stream(device))
            self._prefetch(self._order[0])

    def fetch(self, index: int) -> Features:
        """Returns the features of step `index` on the device, and starts to copy the next step's.

        Each step of the order can be fetched once; the playback keeps no reference to its tensors.
        """
        self._prefetch(index)
        features, copied = self._fetched.pop(index)
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensors in features.values():
                for x in tensors:
                    # they were allocated on the copying stream: without this their memory could
                    # be given out again there while the current stream still reads it
                    x.record_stream(current)
        following = self._order.index(index) + 1
        if following < len(self._order):
            self._prefetch(self._order[following])
        return features

    def _prefetch(self, index: int) -> None:
        if index in self._fetched:
            return
        features = self._cache.by_step[index]
        if self._stream is None or self._cache.placement[index] == "device":
            self._fetched[index] = (_to_device(features, self._device), None)
            return
        with torch.cuda.stream(self._stream):
            copies, copied = _to_device(features, self._device), torch.cuda.Event()
            copied.record(self._stream)
        self._fetched[index] = copies, copied


@contextmanager
def open_playback(
    cache: FeatureCache, order: Iterable[int], device: torch.device
) -> Iterator[Playback]:
    """Context with a `Playback` that reads `cache` for one run.

    order: indices of steps in the cache, in the order in which they will be fetched. device: where
    the run needs the features.
    """
    order = list(order)
    if device.type != "cuda" or not order:
        yield Playback(cache, order, device, None)
        return
    with side_stream(device, "fetch") as stream:
        yield Playback(cache, order, device, stream)


def _to_device(features: Features, device: torch.device) -> Features:
    return {
        site: tuple(x.to(device, non_blocking=True) for x in tensors)
        for site, tensors in features.items()
    }


def _to_host(x: Tensor) -> Tensor:
    if x.device.type != "cuda":
        return x.cpu()
    # pinned, so that the copy runs beside the GPU's work, here and on the way back
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)
