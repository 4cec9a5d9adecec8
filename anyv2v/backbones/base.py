"""What the editor asks of an image-to-video network, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.injection.taps import Taps


@dataclass(frozen=True)
class FirstFrame:
    """A clip's first frame and what else a network may be conditioned on besides text."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB, as given."""
    latents: Tensor
    """(1, c, 1, h/s, w/s): the frame at the clip's size, encoded and scaled, float32."""
    width: int
    """The clip's, in pixels."""
    frames: int
    """How many the clip has."""
    fps: int
    """The frame rate that the network is told."""


class Conditions(Protocol):
    """What steers the rows of one branch; opaque to everyone but its own backbone."""

    @staticmethod
    def stack(branches: Sequence[Conditions], samples: Sequence[int] | None = None) -> Conditions:
        """Of all branches, in order; `samples`: which of the latents each is a branch of.

        Left out, every branch has latents of its own. Branches of one sample have the same first
        frame, so a network may compute once what is equal for them.
        """


@dataclass(frozen=True)
class Branches:
    """The branches that one prediction is made of, without the source."""

    conditions: tuple[Conditions, ...]
    """In row order."""
    combine: Callable[[tuple[Tensor, ...]], Tensor]
    """Guidance: the predictions of the branches, float32 -> one."""


class Backbone(Protocol):
    """An image-to-video diffusion network with what turns its inputs into conditions.

    One that has `tokenize`, `encode_text` or `encode_image` besides gets them on the editor too.
    """

    name: str
    sites: tuple[str, ...]
    """All places that taps are shown, in the order in which a prediction comes to them."""
    groups: Mapping[str, frozenset[str]]
    """The sites that are injected unless others are asked for: group name -> sites."""
    device: torch.device
    dtype: torch.dtype
    conditioners: tuple[nn.Module, ...]
    """The networks that make conditions and that predictions do not need."""

    def condition(self, prompt: str, first: FirstFrame, negative: bool = False) -> Conditions:
        """The conditions of one branch; `negative` for the branch that guidance leads away from."""

    def branches(
        self, prompt: str, negative_prompt: str, first: FirstFrame, guidance: float
    ) -> Branches:
        """All branches of a prediction under guidance."""

    def activation_bytes(self, rows: int, frames: int, height: int, width: int) -> int:
        """What a prediction of latents of that shape needs at least, besides the weights."""

    def predict(
        self, latents: Tensor, t: int | Tensor, conditions: Conditions, taps: Taps
    ) -> Tensor:
        """v (g, c, f, h, w) of latents (n, c, f, h, w) in `dtype`, at timestep t.

        g branches of n samples, as the conditions were stacked. Where the pass is captured in a
        CUDA graph, t is an int64 tensor without dims on the device; a network that reads a number
        from the device, or copies one to it, is not captured, and runs all the same.
        """

    def blank(self, device: torch.device) -> Backbone:
        """The same without data, see `anyv2v.nn.blank`."""

    def blank_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Of one branch, for latents of that size, computed from nothing."""

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Name in the weights folder -> what builds that network, for a folder's config."""

    @classmethod
    def assemble(cls, config: dict, networks: dict[str, nn.Module], folder) -> Backbone:
        """The backbone of loaded networks; `folder` is the weights' (tokenizer files and such)."""
