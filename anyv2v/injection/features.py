"""Recorded features of a source: where they are kept, and how they come back in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from anyv2v.injection.taps import Record
from anyv2v.streams import side_stream

Kept = Mapping[str, tuple[Tensor, ...]]
"""Site -> what `Record` kept there."""

Place = Literal["device", "host"]


@dataclass(frozen=True)
class Recording:
    """What will be recorded, and where it will be kept: known before anything runs."""

    sites: Mapping[int, frozenset[str]]
    """timestep -> sites that an edit injects there."""
    sizes: Mapping[int, int]
    """timestep -> bytes of their features."""
    places: Mapping[int, Place]
    """Where those timesteps go that fit."""
    compact: bool

    @classmethod
    def fit(
        cls,
        sites: Mapping[int, frozenset[str]],
        site_bytes: Mapping[str, int],
        device: int,
        host: int,
        compact: bool,
    ) -> Recording:
        """As many timesteps as fit into the bytes of the device, then into those of the host.

        At the others the source rides along, which costs the same whatever their size: so the
        smallest come first.
        """
        sizes = {t: sum(site_bytes[s] for s in at) for t, at in sites.items() if at}
        places: dict[int, Place] = {}
        room = {"device": device, "host": host}
        for t in sorted(sizes, key=lambda t: (sizes[t], -t)):
            if place := next((p for p in room if sizes[t] <= room[p]), None):
                places[t] = place
                room[place] -= sizes[t]
        return cls({t: sites[t] for t in sizes}, sizes, places, compact)

    def bytes(self, place: Place | None = None) -> int:
        """Kept there, or altogether."""
        return sum(self.sizes[t] for t, p in self.places.items() if place in (None, p))

    def __str__(self) -> str:
        if not self.sizes:
            return "features: nothing is injected"
        form = "compact" if self.compact else "queries and keys"
        kept = [
            f"{self.bytes(place) / 1e9:.2f} GB {where}"
            for place, where in (("device", "on the device"), ("host", "in pinned host memory"))
            if self.bytes(place)
        ]
        text = f"features: {len(self.places)} of {len(self.sizes)} steps kept"
        text += f" ({form}): {', '.join(kept)}" if kept else ""
        left = sum(self.sizes.values()) - self.bytes()
        if left:
            text += f"; {left / 1e9:.2f} GB do not fit, there the source rides along"
        return text


@dataclass(frozen=True)
class Features:
    """timestep -> site -> features, recorded from one source. Nothing changes them in an edit."""

    places: Mapping[int, Place]
    kept: dict[int, Kept] = field(default_factory=dict)
    _moving: list[torch.cuda.Event] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    """What is reached when features are in host memory, one for each device and stream."""

    def add(self, t: int, kept: Kept) -> None:
        """Takes over what was recorded at t, if t has a place."""
        if t not in self.places:
            return
        move = _to_host if self.places[t] == "host" else lambda x: x
        self.kept[t] = {site: tuple(map(move, tensors)) for site, tensors in kept.items()}
        given = {x.device for tensors in kept.values() for x in tensors if x.is_cuda}
        if self.places[t] == "host":
            self._moving.extend(torch.cuda.current_stream(d).record_event() for d in given)

    def settle(self) -> None:
        """Waits for what is still on its way to the host, and for nothing else.

        Another thread may be capturing a graph on the device.
        """
        for event in self._moving:
            event.synchronize()

    def serve(self, t: int, sites: frozenset[str]) -> bool:
        """Whether all that is injected at t was recorded."""
        return t in self.kept and sites <= self.kept[t].keys()


NO_FEATURES = Features({})


class Recorder:
    """Records what a recording wants, of the last prediction at each timestep."""

    def __init__(self, recording: Recording | None):
        self._recording = recording
        self.features = Features(recording.places if recording else {})
        self._last = Record(())

    def taps(self, t: int) -> Record:
        """For the next prediction at t."""
        wanted = t in self.features.places
        compact = wanted and self._recording.compact
        self._last = Record(self._recording.sites[t] if wanted else (), compact)
        return self._last

    def settle(self, t: int) -> None:
        """The last prediction at t was the one that counts."""
        self.features.add(t, self._last.kept)
        self._last = Record(())


class Playback:
    """The features of one run in the order of its timesteps, the next ones fetched meanwhile.

    `stream`: where they are fetched; None for what needs no fetching.
    """

    def __init__(
        self,
        features: Features,
        timesteps: Sequence[int],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ):
        self._features, self._order, self._device = features, timesteps, device
        self._fetched: dict[int, tuple[Kept, torch.cuda.Event | None]] = {}
        self._stream = stream
        if stream is not None:
            # what was recorded may still be on its way to the host on the current stream
            stream.wait_stream(torch.cuda.current_stream(device))
            self._fetch(self._order[0])

    def __getitem__(self, t: int) -> Kept:
        self._fetch(t)
        kept, ready = self._fetched.pop(t)
        if ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            for tensors in kept.values():
                for x in tensors:
                    # the other stream allocated it: keep it until this one has read it
                    x.record_stream(current)
        following = self._order.index(t) + 1
        if following < len(self._order):
            self._fetch(self._order[following])
        return kept

    def _fetch(self, t: int) -> None:
        if t in self._fetched:
            return
        kept = self._features.kept[t]
        if self._stream is None or self._features.places[t] == "device":
            self._fetched[t] = (_on(self._device, kept), None)
            return
        with torch.cuda.stream(self._stream):
            there = _on(self._device, kept)
            self._fetched[t] = (there, self._stream.record_event())


@contextmanager
def playback(
    features: Features, timesteps: Iterable[int], device: torch.device
) -> Iterator[Playback]:
    """Inside, the features of one run."""
    order = list(timesteps)
    if device.type != "cuda" or not order:
        yield Playback(features, order, device, None)
        return
    with side_stream(device, "fetch") as stream:
        yield Playback(features, order, device, stream)


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
