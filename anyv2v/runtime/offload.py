"""Networks that wait on the host while nobody needs them, where the GPU's memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from threading import Lock
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from anyv2v.checks import shown
from anyv2v.errors import InputError
from anyv2v.runtime.memory import free_bytes

Wanted = bool | Literal["auto"]


def checked(offload: Wanted) -> Wanted:
    """InputError unless it is True, False or "auto"."""
    if isinstance(offload, str) and offload == "auto":
        return offload
    if not isinstance(offload, bool):
        raise InputError(f"offload: {shown(offload)} is not True, False or 'auto'")
    return offload


class Offload:
    """Some networks of an editor, each on the device while somebody is within `here`.

    `wanted`: True, they wait on the host from the start; "auto", from the first job on for which
    memory is short; False, or if the device is the host, they stay. Several threads may share it:
    a network comes with the first who needs it and leaves with the last.

    Those with a `reload` wait nowhere, whatever is wanted: they come without their weights, which
    are read when they are needed, and go back to that.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        device: torch.device,
        wanted: Wanted,
        host: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
        reload: Mapping[nn.Module, Callable[[], Iterable[Tensor]]] = MappingProxyType({}),
    ):
        self._waiting = {n: _Waiting(n, reload.get(n)) for n in networks}
        self._device, self._host = device, host
        self._wanted = False if device == host else checked(wanted)
        self._lock = Lock()
        self._leaving = self._wanted is True
        if self._leaving:
            self._leave()

    def reloads(self, network: nn.Module) -> bool:
        """Whether its weights are read when they are needed."""
        return self._waiting[network].reload is not None

    @property
    def freeable(self) -> int:
        """Bytes on the device that a job could still get."""
        there = [w for w in self._waiting.values() if self._wanted and not w.away and not w.reload]
        return sum(x.nbytes for waiting in there for x in waiting.tensors)

    def is_for(self, needed: int) -> bool:
        """Whether networks wait on the host during a job that is to have `needed` bytes."""
        if self._wanted != "auto" or self._leaving:
            return self._leaving
        return needed > free_bytes(self._device)

    def begin(self, needed: int) -> None:
        """A job begins that is to have `needed` bytes: who is not in use may have to leave."""
        if self.is_for(needed):
            with self._lock:
                self._leaving = True
                self._leave()

    @contextmanager
    def here(self, *networks: nn.Module) -> Iterator[None]:
        """Inside, these are on the device."""
        used = [self._waiting[network] for network in networks]
        with self._lock:
            for waiting in used:
                waiting.users += 1
        try:
            with self._lock:
                for waiting in used:
                    waiting.come(self._device)
            yield
        finally:
            # what was started here may still be running, and reads what may be about to leave
            goes = self._wanted or any(waiting.reload for waiting in used)
            if goes and self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            with self._lock:
                for waiting in used:
                    waiting.users -= 1
                    if waiting.reload is not None and not waiting.users:
                        waiting.free()
                if self._leaving:
                    self._leave()

    def _leave(self) -> None:
        unused = [w for w in self._waiting.values() if not w.users and not w.away]
        leaving = [w for w in unused if w.reload is None]
        for waiting in leaving:
            waiting.leave(self._host)
        if leaving and self._device.type == "cuda":
            # a capture takes no memory that others have cached; during another thread's, nothing
            # can be given back
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


class _Waiting:
    """A network, and its weights on the host: they do not change, so they are copied there once."""

    def __init__(self, network: nn.Module, reload: Callable[[], Iterable[Tensor]] | None = None):
        self.tensors: list[Tensor] = [*chain(network.parameters(), network.buffers())]
        self.users, self.away, self.reload = 0, reload is not None, reload
        self._without = [x.data for x in self.tensors] if self.away else []
        self._kept: list[Tensor] | None = None

    def come(self, device: torch.device) -> None:
        if self.away:
            there = (x.data for x in self.tensors) if self.reload is None else self.reload()
            # all or, if memory ends, none
            come = [_moved(x, device) for x in there]
            for x, there in zip(self.tensors, come, strict=True):
                x.data = there
            self.away = False

    def free(self) -> None:
        for x, without in zip(self.tensors, self._without, strict=True):
            x.data = without
        self.away = True

    def leave(self, host: torch.device) -> None:
        if self._kept is None:
            self._kept = [_moved(x.data, host) for x in self.tensors]
        for x, kept in zip(self.tensors, self._kept, strict=True):
            x.data = kept
        self.away = True


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device)
