"""What the editor asks of an image-to-video network, and nothing more.

Whatever differs between backbones is behind `Backbone`: how its noise levels lie and what it
predicts, how frames become latents, which latent frames are never noised, what it is conditioned on
and how its branches combine, which sites are injected, and what its weights work best with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.diffusion.schedule import Level, NoiseSchedule
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import Taps
from anyv2v.vae.codec import LatentCodec

Options = Mapping[str, object]
"""What one backbone alone has, by name: I2VGen-XL's "fps". Values are numbers or texts."""

Guidance = Mapping[str, float]
"""Name of a guidance scale -> its value; 1 is no guidance of that kind. The first is the text's."""


@dataclass(frozen=True)
class Defaults:
    """What weights work best with, when nothing else is asked for."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    frames: int
    fps: int
    """Frames per second of the clips."""
    steps: int = 50
    """Of sampling, and of an inversion that solves its steps."""
    guidance: Guidance = field(default_factory=lambda: {"text": 1.0})
    negative_prompt: str = ""
    injection: Injection = Injection()

    def scales(self, given: float | Guidance | None) -> Guidance:
        """Every scale of guidance: as given, else the weights' own.

        A number is the first scale's; where it is 1 or less, there is no guidance of any kind.
        InputError: not a finite number, or a name that there is not.
        """
        own = self.guidance
        if given is None:
            return own
        if isinstance(given, Mapping):
            checks.known("guidance", given, own, "scale")
            return {
                **own,
                **{name: checks.finite(f"guidance: {name}", given[name]) for name in given},
            }
        number = checks.finite("guidance", given)
        others = dict.fromkeys(own, 1.0) if number <= 1 else own
        return {**others, next(iter(own)): number}


@dataclass(frozen=True)
class FirstFrame:
    """A clip's first frame, and the clip that it begins."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB, as given."""
    latents: Tensor
    """(1, c, 1, h', w'): the frame at the clip's size, encoded and scaled, float32."""
    width: int
    """The clip's, in pixels."""
    frames: int
    """How many frames the clip has."""


class Conditions(Protocol):
    """What one branch is conditioned on, or several; opaque to everyone but its own backbone."""

    @staticmethod
    def stack(branches: Sequence[Conditions], samples: Sequence[int] | None = None) -> Conditions:
        """Of all branches, in order; `samples`: which of the latents each of them is a branch of.

        The numbers count from 0 in order of appearance. Left out, every branch has latents of its
        own. Branches of one sample have the same first frame, so a network may compute once what
        is equal for them.
        """


@dataclass(frozen=True)
class Branches:
    """The branches that one prediction is made of, without the source."""

    conditions: tuple[Conditions, ...]
    combine: Callable[[Level, tuple[Tensor, ...]], Tensor]
    """Guidance: the predictions of the branches at a level, float32 -> one."""


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
    codec: LatentCodec
    schedule: NoiseSchedule
    """Of the inversion; its steps are deterministic."""
    defaults: Defaults
    pinned: int
    """1 if the first latent frame is the first frame's own and never noised, else 0."""
    conditioners: tuple[nn.Module, ...]
    """The networks that make conditions and that predictions do not need."""

    def options(self, given: Options) -> Options:
        """All options of this backbone: as given, else as its weights work best.

        InputError for one that it does not have, or a value that will not do.
        """

    def sampler(self, options: Options) -> NoiseSchedule:
        """Of sampling. It may be another than `schedule`, and add noise."""

    def edited_source(self, options: Options) -> bool:
        """Whether the source's branch of an edit begins with the edited frame, not with its own.

        ConsistI2V's original has it so, by mistake. Every edit then has a source branch of its own.
        """

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """The conditions of one branch; `negative` for the branch that guidance leads away from."""

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """All branches of a prediction under guidance."""

    def branch_count(self, guidance: Guidance) -> int:
        """How many `branches` gives."""

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """What a prediction of so many branches of latents of that shape needs at least, besides
        the weights.
        """

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps
    ) -> Tensor:
        """What the network predicts, (g, c, f, h, w), of latents (n, c, f, h, w) in `dtype`.

        g branches of n samples, as the conditions were stacked; pinned frames are among the f, and
        what is predicted of them is ignored. Where the pass is captured in a CUDA graph, t is a
        tensor without dims on the device, int64 or float64 as the schedule's levels are; a network
        that reads a number from the device, or copies one to it, is not captured, and runs all the
        same.
        """

    def blank(self, device: torch.device) -> Backbone:
        """The same without data, see `anyv2v.runtime.meta`; its codec too."""

    def blank_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Of one branch, for latents of that shape, computed from nothing."""

    own: Mapping[str, object]
    """What its weights work best with where their config says nothing else; the original's
    settings. See `anyv2v.backbones.defaults`."""

    @staticmethod
    def multiple(config: dict) -> int:
        """What both sides of a frame are multiples of, in pixels, as `codec.multiple` will say."""

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Name in the weights folder -> what builds that network, for a folder's config."""

    apart: frozenset[str]
    """The names of the networks that are read from the folder each time that conditions are made,
    and freed after it: those that are too large to lie beside the others."""

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Backbone:
        """The backbone of loaded networks; `folder` is the weights' (tokenizer files and such)."""
