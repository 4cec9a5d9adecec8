"""Offloading: where GPU memory is short, networks that are not in use are kept in host memory."""

from __future__ import annotations

import logging
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
from anyv2v.runtime.memory import free_bytes, size_text

log = logging.getLogger(__name__)

OffloadMode = bool | Literal["auto"]
"""Whether networks are offloaded: always, never, or, with "auto", if memory is short."""


def check_offload(mode: OffloadMode) -> OffloadMode:
    """Returns `mode` if it is True, False or "auto"; raises InputError otherwise."""
    if isinstance(mode, str) and mode == "auto":
        return mode
    if not isinstance(mode, bool):
        raise InputError(f"offload: {shown(mode)} is not True, False or 'auto'")
    return mode


def fits(weights: int, device: torch.device) -> bool:
    """Whether so many bytes of weights fit a device, with a tenth for what they compute."""
    return 1.1 * weights <= free_bytes(device)


class Offload:
    """Keeps some networks of an editor on the device only while they are used, inside `on_device`.

    mode: True keeps unused networks in `host` memory from the start; "auto" does so from the first
    job on that needs more memory than the device has free (`applies_to`); False, or a `device` that
    is the host, leaves all on the device but those in `reload`. Several threads may share an
    Offload: a network moves to the device for its first user, and away after its last.

    reload: a network of `networks` -> a function of a device that returns its weights there, in the
    order of its parameters and buffers. Whatever the mode, such a network is kept nowhere between
    its uses: that function loads its weights when the network first runs inside `on_device`, if it
    does, and they are dropped afterwards. Where they do not fit the device, it runs on the host.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        device: torch.device,
        mode: OffloadMode,
        host: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
        reload: Mapping[nn.Module, Callable[..., Iterable[Tensor]]] = MappingProxyType({}),
    ):
        self._networks = {n: _Offloaded(n, reload.get(n)) for n in networks}
        self._device, self._host = device, host
        self._mode = False if device == host else check_offload(mode)
        self._lock = Lock()

        def load(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # a copy of the network has this hook, too
            if (it := self._networks.get(network)) is None or not it.users:
                return inputs
            with self._lock:
                it.to_device(self._device if fits(it.bytes, self._device) else self._host)
            return tuple(x.to(it.tensors[0].device) for x in inputs)

        for network in reload:
            network.register_forward_pre_hook(load)
        self._active = self._mode is True
        if self._active:
            self._move_unused()

    def reloads(self, network: nn.Module) -> bool:
        """Whether a network's weights are loaded anew for each use."""
        return self._networks[network].reload is not None

    @property
    def reloaded(self) -> int:
        """Bytes of the networks whose weights are loaded anew for each use."""
        reloaded = [n for n in self._networks.values() if n.reload is not None]
        return sum(x.nbytes for network in reloaded for x in network.tensors)

    @property
    def freeable(self) -> int:
        """Bytes on the device that moving networks to the host could free; 0 with mode False."""
        if not self._mode:
            return 0
        movable = [n for n in self._networks.values() if not n.away and not n.reload]
        return sum(x.nbytes for network in movable for x in network.tensors)

    def applies_to(self, needed: int) -> bool:
        """Whether unused networks are in host memory during a job that needs `needed` bytes.

        These are bytes of the device besides those allocated already. With mode "auto" the answer
        is True if so many are not free, or if that was so for an earlier job.
        """
        if self._mode != "auto" or self._active:
            return self._active
        return needed > free_bytes(self._device)

    def begin(self, needed: int) -> None:
        """Begins a job that needs `needed` bytes; moves unused networks if `applies_to` says so."""
        if self.applies_to(needed):
            with self._lock:
                self._active = True
                self._move_unused()

    @contextmanager
    def on_device(self, *networks: nn.Module) -> Iterator[None]:
        """Keeps these networks on the device inside the block; offloads them after it if needed."""
        used = [self._networks[network] for network in networks]
        with self._lock:
            for network in used:
                network.users += 1
        try:
            with self._lock:
                for network in used:
                    if network.reload is None:
                        network.to_device(self._device)
            yield
        finally:
            # work that was started in the block may still be running on the GPU, and reads weights
            # that are about to be moved or dropped
            moves = self._mode or any(network.reload for network in used)
            if moves and self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            with self._lock:
                for network in used:
                    network.users -= 1
                    if network.reload is not None and not network.users:
                        network.drop_weights()
                if self._active:
                    self._move_unused()

    def _move_unused(self) -> None:
        unused = [n for n in self._networks.values() if not n.users and not n.away]
        moved = [n for n in unused if n.reload is None]
        for network in moved:
            network.to_host(self._host)
        if moved and self._device.type == "cuda":
            # while a CUDA graph is captured its memory pool takes no memory that was cached
            # elsewhere; and while another thread captures, no cached memory can be released
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


class _Offloaded:
    """A network with its weights on the host, which never change, so they are copied there once."""

    def __init__(self, network: nn.Module, reload: Callable[..., Iterable[Tensor]] | None = None):
        self.tensors: list[Tensor] = [*chain(network.parameters(), network.buffers())]
        self.users, self.away, self.reload = 0, reload is not None, reload
        self._without_data = [x.data for x in self.tensors] if self.away else []
        self._on_host: list[Tensor] | None = None

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in self.tensors)

    def to_device(self, device: torch.device) -> None:
        if self.away:
            weights = (x.data for x in self.tensors) if self.reload is None else self.reload(device)
            # all are moved before the first is assigned: if memory runs out, none is
            self._assign([_moved(x, device) for x in weights])
            self.away = False
            log.info("offload: %s of weights to %s", size_text(self.bytes), device)

    def drop_weights(self) -> None:
        self._assign(self._without_data)
        self.away = True

    def to_host(self, host: torch.device) -> None:
        if self._on_host is None:
            self._on_host = [_moved(x.data, host) for x in self.tensors]
        self._assign(self._on_host)
        self.away = True
        log.info("offload: %s of weights to the host", size_text(self.bytes))

    def _assign(self, data: Iterable[Tensor]) -> None:
        for x, new in zip(self.tensors, data, strict=True):
            x.data = new


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device)
