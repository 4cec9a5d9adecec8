"""The feature cache: where a source's recorded features lie, and how they reach the GPU in time.

Steps are counted in the run of the source's inversion: index 0 is the noisiest step.
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
"""Where a step's features lie: on the device (the GPU), or in the host's pinned memory."""


class Event(Protocol):
    """A point in a stream's work that the host can wait for (`torch.cuda.Event`)."""

    def synchronize(self) -> None:
        """Waits until the work before this point is done."""
        ...


@dataclass(frozen=True)
class FeatureCache:
    """Features recorded from one source, by step and site. An edit only reads them."""

    placement: Mapping[int, Placement]
    """Index of each step that may be cached -> where its features lie."""
    by_step: dict[int, Features] = field(default_factory=dict)
    """Index of each step that was recorded -> site -> tensors."""
    _copies: list[Event] = field(default_factory=list, init=False, repr=False, compare=False)
    """The ends of copies to the host, one for each device and recorded step."""

    def add(self, index: int, features: Features) -> None:
        """Stores the features of a step, and starts their copy to the host if they belong there.

        Steps without a placement are dropped.
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
        """All sites that were recorded at any step."""
        return frozenset(site for features in self.by_step.values() for site in features)

    def wait(self) -> None:
        """Waits for the copies to the host; until then the host must not read the features.

        It waits for events, not for the whole device: another thread may be capturing a graph
        there, which a synchronization of the device would break.
        """
        for event in self._copies:
            event.synchronize()

    def covers(self, index: int, sites: frozenset[str]) -> bool:
        """Whether all of these sites were recorded at a step."""
        return index in self.by_step and sites <= self.by_step[index].keys()


NO_FEATURES = FeatureCache({})
"""The cache of a source without recorded features."""


class Playback:
    """Reads a cache in the order of a run's steps, and prefetches the next step from the host."""

    def __init__(
        self,
        cache: FeatureCache,
        order: Sequence[int],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ):
        """`order`: the indices of the steps that will be fetched.

        `stream`: the stream of the copies from the host; None if nothing has to be copied.
        """
        self._cache, self._order, self._device = cache, order, device
        self._fetched: dict[int, tuple[Features, torch.cuda.Event | None]] = {}
        self._stream = stream
        if stream is not None:
            # the current stream may not have finished copying these features to the host
            stream.wait_stream(torch.cuda.current_stream(device))
            self._prefetch(self._order[0])

    def fetch(self, index: int) -> Features:
        """Returns a step's features on the device and starts to copy those of the next step.

        Each step can be fetched once; its copy is not held here afterwards.
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
    """A `Playback` of the steps of one run, which fetches them in this order."""
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
