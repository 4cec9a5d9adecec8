"""The options of the weights and of the machine, and the editor that is loaded by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anyv2v import loading
from anyv2v.editor import Editor
from anyv2v.runtime.device import choose_device
from anyv2v.runtime.offload import OffloadMode
from anyv2v.weights.packaged import DEMO

OFFLOADS: dict[str, OffloadMode] = {"auto": "auto", "on": True, "off": False}
"""Value of --offload -> mode of `Offload`."""


@dataclass(frozen=True)
class Model:
    """Which weights to load, and where and in which dtype to run them."""

    weights: str = DEMO
    """Folder of the weights, "demo" or "flow"."""
    device: str | None = None
    """None chooses CUDA if there is a GPU; otherwise "cpu" or "cuda", such as "cuda:1"."""
    dtype: str | None = None
    """Name of a dtype, such as "float16"; None chooses as `load` does."""
    offload: str = "auto"
    """A key of `OFFLOADS`."""

    @property
    def torch_device(self) -> torch.device:
        """The device to run on; raises InputError if this machine lacks the one asked for."""
        return choose_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype that was asked for, or None if none was."""
        return getattr(torch, self.dtype) if self.dtype else None

    def load(self) -> Editor:
        """Loads the weights into an editor. Raises InputError if the folder or an option is bad."""
        offload = OFFLOADS[self.offload]
        return loading.load(self.weights, self.device, self.torch_dtype, offload=offload)
