"""The interface between the editor and an image-to-video network.

Everything that differs between backbones (networks with what surrounds them) is behind the protocol
`Backbone`: the noise levels and what the network predicts, how frames become latents, which latent
frames are never noised, what the network is conditioned on, how guidance combines predictions,
which layers are injected, and which settings the weights work best with.
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
"""Name of an option that is specific to a backbone, such as I2VGen-XL's "fps" -> its value, a
number or a string."""

Guidance = Mapping[str, float]
"""Name of a guidance scale -> its value; 1 turns that guidance off. The text's scale is the first
entry."""

PublishedSettings = Mapping[str, object]
"""The settings of a backbone's original code, which apply where the config of the weights states
no others, and with the option `--paper`: "steps", "guidance" (name of a scale -> value, the text's
first), "negative_prompt", "injection" (injection group -> fraction of the steps) and, if not 0,
"start" (index of the first step that an edit runs). "tolerance" and "evaluations" are no settings
of the original: they are stated if fixed-point inversion needs others than usual, as are
"solved_from" and "noise_range" (a list), see `Defaults`."""


@dataclass(frozen=True)
class Defaults:
    """The settings that weights work best with, used for whatever the caller does not specify."""

    size: tuple[int, int]
    """(width, height) of the clips in pixels."""
    frames: int
    """Number of frames of a clip."""
    fps: int
    """Frame rate of the clips, in frames per second."""
    steps: int = 50
    """Number of steps of sampling, and of an inversion by the method "fixed-point"."""
    guidance: Guidance = field(default_factory=lambda: {"text": 1.0})
    """The value of every guidance scale that the backbone has."""
    negative_prompt: str = ""
    """The prompt that guidance leads away from."""
    injection: Injection = Injection()
    """The fraction of the steps in which each injection group (set of layers) is injected."""
    start: int = 0
    """Index of the first of `steps` steps that an edit runs; 0, the noisiest, runs all."""
    tolerance: float = 3e-3
    """Relative residual at which a fixed-point inversion has solved a step."""
    evaluations: float = 1.5
    """Most evaluations of the network per step of a fixed-point inversion, on average."""
    solved_from: float = 0.0
    """The sigma from which a fixed-point inversion solves its steps, see `fixed_point`; 0: all."""
    noise_range: tuple[float, ...] = ()
    """Least and largest `Source.noise_norm` of clips that the weights know, beyond which inversions
    fail; empty: not known."""
    guide: str | None = None
    """Where the command line's edits take their guess from, "auto" or "patches", see
    `EditRequest.guide`; None: nowhere. `Editor.edit` does not read it."""
    protect: bool = False
    """Whether the command line protects what the edit left alone. `Editor.edit` does not."""

    def start_of(self, steps: int) -> int:
        """Returns the index of the first step of an edit in `steps` steps: `start` in proportion.

        It is rounded down, to a step that is as noisy as `start` or noisier.
        """
        return self.start * steps // self.steps

    def scales(self, guidance: float | Guidance | None) -> Guidance:
        """Returns the value of every guidance scale of the backbone.

        guidance: None for the default values; a mapping from names to values, which overrides the
        defaults of the scales that it names; or a number, the value of the first scale (the
        text's), which also turns all other scales off if it is 1 or less. Raises InputError if a
        value is not finite or a name is unknown.
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
    """(h, w, 3) uint8 RGB: the frame as the caller passed it, whose size may not be the clip's.
    It is float32, 0 to 255, if it was stretched by a backbone that `stretches_bilinearly`."""
    latents: Tensor
    """(1, c, 1, h', w') float32: scaled latents of the frame at the clip's size."""
    width: int
    """Width of the clip in pixels."""
    frames: int
    """Number of frames of the clip, in pixel space."""
    begin: Tensor | None = None
    """(1, c, f', h', w') float32: the latents of all frames that sampling starts from, before the
    pinned frames are replaced. None outside sampling."""


C = TypeVar("C", bound="Conditions")


class Conditions(Protocol):
    """What one or several branches of a prediction are conditioned on.

    A branch is one pass through the network, such as those with and without the prompt in
    classifier-free guidance. Only the backbone that made the conditions reads their contents.
    """

    @classmethod
    def stack(cls: type[C], branches: Sequence[C], samples: Sequence[int] | None = None) -> C:
        """Stacks the conditions of single branches into those of a batch, in order.

        samples: for each branch, the index of the sample (noisy latents with a first frame) that
        the branch predicts, numbered from 0 in order of appearance. Branches of one sample must
        have the same first frame, so that a network may compute what they share only once. None
        gives every branch a sample of its own.
        """
        ...


@dataclass(frozen=True)
class Branches:
    """The network passes (branches) that guidance combines into the prediction for one clip.

    In an edit, the branch of the source clip is not among them.
    """

    conditions: tuple[Conditions, ...]
    """The conditions of each branch."""
    combine: Callable[[Level, tuple[Tensor, ...]], Tensor]
    """Function (noise level, float32 prediction of each branch) -> the guided prediction."""


class Backbone(Protocol):
    """An image-to-video diffusion network, with everything that turns its inputs into conditions.

    A backbone may also have the methods `tokenize`, `encode_text` and `encode_image`; the editor's
    methods of the same names call them.
    """

    published_settings: ClassVar[PublishedSettings]
    """The settings of the original code, which apply where the weights' config states no others."""
    loaded_on_demand: ClassVar[frozenset[str]]
    """Names of the networks (keys of `networks`) that are too large to stay in memory: they are
    read from the weights folder whenever conditions are made, and freed afterwards."""

    half_dtype: ClassVar[torch.dtype]
    """The dtype of the networks on a GPU if the caller asks for none."""
    stretches_bilinearly: ClassVar[bool]
    """Whether `fit="stretch"` interpolates an edited frame bilinearly, to floats, as the original
    does, instead of to 8 bits with LANCZOS; see `fit_frame`."""

    @property
    def name(self) -> str:
        """The name by which config.json in a weights folder refers to the backbone."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites (layers that call hooks, see `Taps`), in the order of a prediction."""
        ...

    @property
    def groups(self) -> Mapping[str, frozenset[str]]:
        """Injection group -> names of its layers (sites), which the caller may override."""
        ...

    @property
    def correspondence_site(self) -> str:
        """The name of the site whose residual features tell which place of a clip shows what.

        Places of two frames that show the same have alike features there, whatever lies around
        them. The recorded tensor holds one vector for each square of k x k latents of each latent
        frame, in the order of the latents: it can be viewed as (f', h'/k, w'/k, c). k is the same
        for all sizes, most often 1.
        """
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
        """The autoencoder between frames and latents."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule used for inversion; its steps are deterministic."""
        ...

    @property
    def defaults(self) -> Defaults:
        """The settings that the loaded weights work best with."""
        ...

    @property
    def pinned_frames(self) -> int:
        """The number of leading latent frames that hold the clean first frame: 0 or 1.

        These frames are given to the network without noise and are not sampled.
        """
        ...

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        """The networks that `condition` runs and `predict` does not, such as text encoders."""
        ...

    def options(self, options: Options) -> Options:
        """Returns a value for every option of the backbone: that in `options`, or the default.

        Raises InputError if the backbone has no option of a given name, or a value is invalid.
        """
        ...

    def sampler(self, options: Options) -> NoiseSchedule:
        """Returns the noise schedule used for sampling.

        It may differ from `schedule`, which is used for inversion, and its steps may add fresh
        noise. options: completed by the method `options`.
        """
        ...

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Whether an edit's source branch is conditioned on the edited first frame.

        The source branch is the pass over the source clip whose features are injected. It is
        usually conditioned on the source's own first frame; ConsistI2V's original code passes the
        edited frame by mistake, and its edits therefore cannot share a source branch.
        """
        ...

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch from a prompt and a first frame.

        options: completed by the method `options`. negative: whether guidance leads away from this
        branch; `prompt` is then the negative prompt.
        """
        ...

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the conditions of all branches that a prediction under `guidance` needs.

        guidance: a value for every scale, see `Defaults.scales`; a scale that is turned off adds
        no branch. options: completed by the method `options`.
        """
        ...

    def branch_count(self, guidance: Guidance) -> int:
        """Returns the number of branches that the method `branches` makes for `guidance`."""
        ...

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that one prediction's activations need.

        branches: number of branches in the batch. frames, height, width: size of the latents.
        """
        ...

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps
    ) -> Tensor:
        """Runs the network: latents (n, c, f, h, w) -> predictions (g, c, f, h, w), in `dtype`.

        The predictions may be float32 instead. The latents are n samples, for which `conditions`
        holds g branches (see `Conditions.stack`). The f latent frames include the `pinned_frames`,
        whose prediction is ignored. t: the timestep of the noise level. taps: the hooks to call at
        the sites.

        While a CUDA graph is captured, t is a tensor without dims on the device, int64 or float64
        like the schedule's timesteps. A network that copies numbers between host and device cannot
        be captured; its predictions then run without a graph.
        """
        ...

    def meta_copy(self, device: torch.device) -> Backbone:
        """Returns a copy of the backbone and its codec on `device`, with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        ...

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes the conditions of one branch from uninitialized inputs, to find shapes and costs.

        frames, height, width: size of the latents that the conditions are for.
        """
        ...

    @staticmethod
    def size_multiple(config: dict) -> int:
        """Returns the number of pixels that must divide a frame's width and height.

        config: the contents of a weights folder's config.json. For loaded weights,
        `codec.size_multiple` is the same number.
        """
        ...

    @staticmethod
    def frames_per_latent(config: dict) -> int:
        """Returns the number of frames that each latent frame after the first stands for.

        config: as in `size_multiple`. For loaded weights, `codec.frames_per_latent` is the same.
        """
        ...

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Returns the functions that build the networks, by the networks' names, such as "unet".

        config: the contents of the weights folder's config.json. The functions do not load weights.
        They raise InputError if the network's section of the config is missing or wrong.
        """
        ...

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Backbone:
        """Builds the backbone from loaded networks and the other files of a weights folder.

        config: the contents of the folder's config.json. networks: name -> network, built by the
        functions of the method `networks`. defaults: the settings that become `Backbone.defaults`.
        Raises InputError if the config, or a file such as the tokenizer's, does not match the
        networks.
        """
        ...
