"""The cache of a source's features: where they are kept, and how they come back in time.

Its keys are indices of steps in the run of the source's inversion, 0 the noisiest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from anyv2v.injection.taps import Kept
from anyv2v.runtime.streams import side_stream

Place = Literal["device", "host"]
"""Where a step's features are: on the device, or in pinned host memory and fetched ahead."""


@dataclass(frozen=True)
class FeatureCache:
    """Index of a step -> site -> features, recorded from one source. No edit changes them."""

    places: Mapping[int, Place]
    kept: dict[int, Kept] = field(default_factory=dict)
    _moving: list[torch.cuda.Event] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    """What is reached when features are in host memory, one for each device and stream."""

    def add(self, index: int, kept: Kept) -> None:
        """Takes over what was recorded at a step, if the step has a place."""
        if index not in self.places:
            return
        move = _to_host if self.places[index] == "host" else lambda x: x
        self.kept[index] = {site: tuple(map(move, tensors)) for site, tensors in kept.items()}
        given = {x.device for tensors in kept.values() for x in tensors if x.is_cuda}
        if self.places[index] == "host":
            self._moving.extend(torch.cuda.current_stream(d).record_event() for d in given)

    @property
    def sites(self) -> frozenset[str]:
        """Everywhere that something was recorded."""
        return frozenset(site for at in self.kept.values() for site in at)

    def settle(self) -> None:
        """Waits for what is still on its way to the host, and for nothing else.

        Another thread may be capturing a graph on the device.
        """
        for event in self._moving:
            event.synchronize()

    def serve(self, index: int, sites: frozenset[str]) -> bool:
        """Whether all of these sites were recorded at a step."""
        return index in self.kept and sites <= self.kept[index].keys()


NO_FEATURES = FeatureCache({})


class Playback:
    """Features of one run in the order of its steps, the next ones fetched meanwhile.

    `stream`: where they are fetched; None for what needs no fetching.
    """

    def __init__(
        self,
        cache: FeatureCache,
        order: Sequence[int],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ):
        self._cache, self._order, self._device = cache, order, device
        self._fetched: dict[int, tuple[Kept, torch.cuda.Event | None]] = {}
        self._stream = stream
        if stream is not None:
            # what was recorded may still be on its way to the host on the current stream
            stream.wait_stream(torch.cuda.current_stream(device))
            self._prefetch(self._order[0])

    def fetch(self, index: int) -> Kept:
        """The features of a step, on the device; the transfer of the following step's begins."""
        self._prefetch(index)
        kept, ready = self._fetched.pop(index)
        if ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            for tensors in kept.values():
                for x in tensors:
                    # the other stream allocated it: keep it until this one has read it
                    x.record_stream(current)
        following = self._order.index(index) + 1
        if following < len(self._order):
            self._prefetch(self._order[following])
        return kept

    def _prefetch(self, index: int) -> None:
        if index in self._fetched:
            return
        kept = self._cache.kept[index]
        if self._stream is None or self._cache.places[index] == "device":
            self._fetched[index] = (_on(self._device, kept), None)
            return
        with torch.cuda.stream(self._stream):
            there = _on(self._device, kept)
            self._fetched[index] = (there, self._stream.record_event())


@contextmanager
def playback(cache: FeatureCache, order: Iterable[int], device: torch.device) -> Iterator[Playback]:
    """Inside, the features of the steps of one run, which come in this order."""
    order = list(order)
    if device.type != "cuda" or not order:
        yield Playback(cache, order, device, None)
        return
    with side_stream(device, "fetch") as stream:
        yield Playback(cache, order, device, stream)


def _on(device: torch.device, kept: Kept) -> Kept:
    return {
        site: tuple(x.to(device, non_blocking=True) for x in tensors)
        for site, tensors in kept.items()
    }


def _to_host(x: Tensor) -> Tensor:
    if x.device.type != "cuda":
        return x.cpu()
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return there.copy_(x, non_blocking=True)
