"""The interface between the editor and an image-to-video network.

Everything that differs between backbones is behind the protocol `Backbone`: the noise levels and
what the network predicts, how frames become latents, which latent frames are never noised, what the
network is conditioned on and how its branches combine, which sites are injected, and which settings
its weights work best with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.diffusion.schedule import Level, NoiseSchedule
from anyv2v.injection.fractions import Injection
from anyv2v.injection.taps import Taps
from anyv2v.vae.codec import LatentCodec

Options = Mapping[str, object]
"""Options that one backbone alone has, by name: I2VGen-XL's "fps". They are numbers or strings."""

Guidance = Mapping[str, float]
"""Name of a guidance scale -> its value; 1 turns that guidance off. The text's scale is first."""

PublishedSettings = Mapping[str, object]
"""What a backbone's weights work best with where their config says nothing else: "steps",
"guidance" (scale -> value, the text's first), "negative_prompt" and "injection" (group ->
fraction). These are the original's settings, which `--paper` asks for."""


@dataclass(frozen=True)
class Defaults:
    """The settings that weights work best with; they hold wherever the caller gives none."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    frames: int
    """Frames per clip."""
    fps: int
    """Frames per second of the clips."""
    steps: int = 50
    """Steps of sampling, and of an inversion that solves its steps."""
    guidance: Guidance = field(default_factory=lambda: {"text": 1.0})
    """All guidance scales of the backbone."""
    negative_prompt: str = ""
    """The prompt that guidance leads away from."""
    injection: Injection = Injection()
    """The fraction of the steps in which each group of sites is injected."""

    def scales(self, guidance: float | Guidance | None) -> Guidance:
        """Completes `guidance` to a value for every scale of the backbone.

        None stands for the defaults. A mapping overrides the scales that it names. A number is the
        value of the first scale, and if it is 1 or less, all other scales are turned off too.
        Raises InputError for a number that is not finite and for an unknown name.
        """
        defaults = self.guidance
        if guidance is None:
            return defaults
        if isinstance(guidance, Mapping):
            checks.known("guidance", guidance, defaults, "scale")
            return {
                **defaults,
                **{name: checks.finite(f"guidance: {name}", guidance[name]) for name in guidance},
            }
        number = checks.finite("guidance", guidance)
        others = dict.fromkeys(defaults, 1.0) if number <= 1 else defaults
        return {**others, next(iter(defaults)): number}


@dataclass(frozen=True)
class FirstFrame:
    """The first frame of a clip, and the size of the clip that begins with it."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB, at the size that the caller gave it."""
    latents: Tensor
    """(1, c, 1, h', w') float32: the frame, resized to the clip's size, encoded and scaled."""
    width: int
    """Width of the clip in pixels."""
    frames: int
    """Number of frames of the clip."""


C = TypeVar("C", bound="Conditions")


class Conditions(Protocol):
    """What one or several branches are conditioned on; only their own backbone looks inside."""

    @classmethod
    def stack(cls: type[C], branches: Sequence[C], samples: Sequence[int] | None = None) -> C:
        """Stacks the conditions of single branches, in order.

        samples: for each branch the index of the latents that it is a branch of, counted from 0 in
        order of appearance; by default every branch has latents of its own. The branches of one
        sample have the same first frame, so a network may compute once what is equal for them.
        """
        ...


@dataclass(frozen=True)
class Branches:
    """The branches that one guided prediction is computed from; the source is not among them."""

    conditions: tuple[Conditions, ...]
    """The conditions of each branch."""
    combine: Callable[[Level, tuple[Tensor, ...]], Tensor]
    """Guidance: the float32 predictions of the branches at a level -> the guided prediction."""


class Backbone(Protocol):
    """An image-to-video diffusion network, with everything that turns its inputs into conditions.

    A backbone may also have `tokenize`, `encode_text` and `encode_image`; the editor's methods of
    these names call them.
    """

    published_settings: ClassVar[PublishedSettings]
    """The settings of the original, which hold where the weights' config says nothing else."""
    loaded_on_demand: ClassVar[frozenset[str]]
    """The networks that are read from the folder whenever conditions are made, then freed: they are
    too large to stay in memory with the others."""

    @property
    def name(self) -> str:
        """The name that config.json of a weights folder calls the backbone by."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """All places where taps are called, in the order in which a prediction reaches them."""
        ...

    @property
    def groups(self) -> Mapping[str, frozenset[str]]:
        """Injection group -> the sites that are injected unless the caller chooses others."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        ...

    @property
    def codec(self) -> LatentCodec:
        """The autoencoder."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the inversion; its steps are deterministic."""
        ...

    @property
    def defaults(self) -> Defaults:
        """The settings that the loaded weights work best with."""
        ...

    @property
    def pinned_frames(self) -> int:
        """How many latent frames hold the first frame and are never noised: 0 or 1."""
        ...

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        """The networks that make conditions; predictions do not need them."""
        ...

    def options(self, options: Options) -> Options:
        """Completes `options` to a value for every option of the backbone.

        Raises InputError for an option that the backbone does not have and for an invalid value.
        """
        ...

    def sampler(self, options: Options) -> NoiseSchedule:
        """Returns the schedule of sampling. It may differ from `schedule`, and may add noise."""
        ...

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Whether the source's branch of an edit is conditioned on the edited first frame.

        ConsistI2V's original does that by mistake. Every edit then needs its own source branch.
        """
        ...

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch; `negative`: the one that guidance leads away from."""
        ...

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the conditions of all branches of a prediction under `guidance`."""
        ...

    def branch_count(self, guidance: Guidance) -> int:
        """Returns how many branches `branches` would make."""
        ...

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound, in bytes, of a prediction's memory without the weights.

        branches: branches in the batch. frames, height, width: of the latents.
        """
        ...

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps
    ) -> Tensor:
        """Predicts (g, c, f, h, w) from latents (n, c, f, h, w), both in `dtype`.

        There are g branches of n samples, as the conditions were stacked. The f frames include the
        pinned ones, for which the prediction is ignored. In a pass that is captured as a CUDA graph
        t is a tensor without dims on the device, int64 or float64 like the schedule's timesteps. A
        network that reads a number from the device, or copies one to it, cannot be captured; its
        predictions run uncaptured.
        """
        ...

    def meta_copy(self, device: torch.device) -> Backbone:
        """Returns a copy of the backbone and its codec with weights that hold no data.

        The copy counts operations and finds shapes; see `anyv2v.runtime.meta`.
        """
        ...

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes one branch's conditions from inputs without data, for latents of that shape."""
        ...

    @staticmethod
    def size_multiple(config: dict) -> int:
        """Returns the number of pixels that must divide both sides of a frame.

        It reads the folder's config; once loaded, `codec.size_multiple` is the same number.
        """
        ...

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Returns for each network of a weights folder, by name, the function that builds it."""
        ...

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Backbone:
        """Assembles the backbone from loaded networks and from other files of the `folder`.

        Raises InputError for a config, or a file such as the tokenizer's, that does not fit them.
        """
        ...
