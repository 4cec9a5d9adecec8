"""The options of the weights and of the machine, and the editor that they ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anyv2v import loading
from anyv2v.editor import Editor
from anyv2v.runtime.device import choose_device
from anyv2v.runtime.offload import OffloadMode

OFFLOADS: dict[str, OffloadMode] = {"auto": "auto", "on": True, "off": False}


@dataclass(frozen=True)
class Model:
    """Which weights, and where and in which precision they run; None is chosen by itself."""

    weights: str = loading.DEMO
    device: str | None = None
    dtype: str | None = None
    offload: str = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device; InputError if there is no such device here."""
        return choose_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype that was asked for; None if none was."""
        return getattr(torch, self.dtype) if self.dtype else None

    def load(self) -> Editor:
        """The editor of these weights."""
        offload = OFFLOADS[self.offload]
        return loading.load(self.weights, self.device, self.torch_dtype, offload=offload)
