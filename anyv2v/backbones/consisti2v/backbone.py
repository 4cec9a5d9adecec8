"""ConsistI2V (arXiv 2402.04324) behind the interface that the editor uses, `Backbone`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.backbones import base
from anyv2v.backbones.base import (
    Branches,
    Defaults,
    FirstFrame,
    Guidance,
    Options,
    PublishedSettings,
)
from anyv2v.backbones.consisti2v.conditioning import Conditions
from anyv2v.backbones.consisti2v.config import UNetConfig
from anyv2v.backbones.consisti2v.defaults import PUBLISHED_SETTINGS
from anyv2v.backbones.consisti2v.unet import UNet
from anyv2v.backbones.defaults import read_groups
from anyv2v.checks import shown
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.config import section
from anyv2v.diffusion.schedule import Level, TableSchedule, linear_alphas_cumprod
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.finite import check_finite
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.vae.codec import ImageCodec

TRAIN_STEPS = 1000
"""Number of timesteps in training."""
SCHEDULE = {"train_steps": TRAIN_STEPS, "steps_offset": 1}
"""The only noise schedule that `ConsistI2V.assemble` accepts in config.json."""
OPTIONS: Options = {"frame_stride": 3, "source_frame": "own"}
"""Name of an option -> its default; see `ConsistI2V.options`."""
SOURCE_FRAMES = ("own", "edited")
"""The values of the option "source_frame"."""


def schedule() -> TableSchedule:
    """Returns the noise schedule, which inversion and sampling both use.

    beta grows linearly from 0.00085 to 0.012, the network predicts epsilon, every run visits
    timestep 1, and it ends with clean latents.
    """
    alphas_cumprod = linear_alphas_cumprod(0.00085, 0.012, TRAIN_STEPS)
    return TableSchedule(alphas_cumprod, "epsilon", SCHEDULE["steps_offset"])


@dataclass(frozen=True)
class ConsistI2V:
    """ConsistI2V's networks and settings, as the editor uses them; implements `base.Backbone`.

    The first latent frame is the clip's clean first frame; it is never noised. A clip may have any
    number of frames, since nothing in the computation is sized by it; the network was trained on as
    many as `defaults` states.
    """

    unet: UNet
    """The network that predicts epsilon, the noise."""
    text: TextEncoder
    """CLIP's text encoder."""
    tokenizer: Tokenizer
    """The tokenizer of the text encoder."""
    groups: Mapping[str, frozenset[str]]
    """Injection group -> names of its layers (sites), as the weights' config.json lists them."""
    codec: ImageCodec
    """The autoencoder between frames and latents."""
    defaults: Defaults
    """The settings that the loaded weights work best with."""
    schedule: TableSchedule = field(default_factory=schedule)
    """The noise schedule of inversion and sampling."""

    name = "consisti2v"
    pinned_frames = 1
    half_dtype: ClassVar[torch.dtype] = torch.float16
    stretches_bilinearly: ClassVar[bool] = True
    loaded_on_demand: ClassVar[frozenset[str]] = frozenset()
    published_settings: ClassVar[PublishedSettings] = PUBLISHED_SETTINGS

    @staticmethod
    def size_multiple(config: dict) -> int:
        """Returns the number of pixels that must divide a frame's sides: the side of a latent.

        config: the contents of a weights folder's config.json. Raises InputError if its section
        "vae" is missing or wrong.
        """
        return section(config, "vae", AutoencoderConfig).spatial_compression

    @staticmethod
    def frames_per_latent(config: dict) -> int:
        """Returns 1: every frame has a latent frame of its own."""
        return 1

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Returns the functions that build the networks "unet", "text" and "vae".

        config: the contents of the weights folder's config.json. Each function raises InputError if
        the network's section of the config is missing or wrong.
        """
        return {
            "unet": lambda: UNet(section(config, "unet", UNetConfig)),
            "text": lambda: TextEncoder(section(config, "text", TextConfig)),
            "vae": lambda: Autoencoder(section(config, "vae", AutoencoderConfig)),
        }

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> ConsistI2V:
        """Builds the backbone from loaded networks and the tokenizer in a weights folder.

        config: the contents of the folder's config.json. networks: name -> network, built by the
        functions of the method `networks`. defaults: the settings for what a caller does not
        specify. Raises InputError if the config's noise schedule is not `SCHEDULE`, or the
        tokenizer does not match the text encoder.
        """
        if config.get("schedule") != SCHEDULE:
            raise InputError(f"schedule {config.get('schedule')} is not {SCHEDULE}")
        text = section(config, "text", TextConfig)
        special = section(config, "tokenizer", TokenizerConfig)
        tokenizer = Tokenizer.load(folder / "tokenizer", special, text.tokens, text.vocab_size)
        # asking now keeps the tokenizer from warning later: nobody typed the default prompt, so
        # nobody needs to hear that a small text encoder cuts it
        tokenizer.lost(PUBLISHED_SETTINGS["negative_prompt"])
        return cls(
            unet=cast(UNet, networks["unet"]),
            text=cast(TextEncoder, networks["text"]),
            tokenizer=tokenizer,
            groups=read_groups(config),
            codec=ImageCodec(cast(Autoencoder, networks["vae"])),
            defaults=defaults,
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the UNet's sites (layers that call hooks, see `Taps`), in forward order."""
        return self.unet.sites

    @property
    def correspondence_site(self) -> str:
        """The first residual site at full resolution on the way up: one vector for each latent."""
        return f"up.{len(self.unet.up) - 1}.res.0"

    @property
    def device(self) -> torch.device:
        """The device of the UNet's weights."""
        return self.unet.conv_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's weights."""
        return self.unet.conv_out.weight.dtype

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        """CLIP's text encoder, which `condition` runs and `predict` does not."""
        return (self.text,)

    def tokenize(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, 77), padded or cut to that length."""
        return self.tokenizer(text)

    def encode_text(self, text: str, clip_skip: int = 0) -> Tensor:
        """Encodes a text as CLIP's hidden states, one per token: (1, 77, d) in `dtype`.

        The last `clip_skip` layers of the text encoder are skipped, by default none, and its final
        norm is applied. Raises NotFiniteError if a hidden state is infinite or NaN.
        """
        hidden = self.text(self.tokenize(text).to(self.device), clip_skip)
        return check_finite(hidden, f"the text tower, of {shown(text)}", self.dtype)

    def options(self, options: Options) -> Options:
        """Returns the options "frame_stride" and "source_frame", from `options` or by default.

        "frame_stride" is the number of frames of the original video from one frame of the clip to
        the next, as the network is told; by default 3, as in the original code. "source_frame" says
        which first frame the source branch of an edit sees: the source clip's "own" (the default)
        or the "edited" one, which the original code gives it by mistake.

        Raises InputError if the stride is not a whole number from 1 up, "source_frame" is something
        else, or `options` has any other option.
        """
        checks.known("options", options, OPTIONS, "option")
        found = {**OPTIONS, **options}
        checks.one_of("options: source_frame", found["source_frame"], SOURCE_FRAMES)
        stride = checks.count("options: frame_stride", found["frame_stride"])
        return {**found, "frame_stride": stride}

    def sampler(self, options: Options) -> TableSchedule:
        """Returns `schedule`: sampling and inversion use the same noise schedule."""
        return self.schedule

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Whether the option "source_frame" is "edited"."""
        return options["source_frame"] == "edited"

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch from a prompt; the first frame is in the latents.

        options: completed by the method `options`. negative: ignored, because the branch that
        guidance leads away from differs in its prompt alone.
        """
        stride = torch.tensor([options["frame_stride"]], device=self.device)
        return self.unet.condition(self.encode_text(prompt), stride)

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the branches of guidance by text and by first frame.

        If guidance["image"] is over 1, there are three: `negative_prompt` with frame 0 of the
        latents `first.begin` (noise, in place of the first frame), `negative_prompt`, and `prompt`.
        Otherwise, if guidance["text"] is over 1, there are the last two; otherwise only the last.
        options: completed by the method `options`.
        """
        text, image = guidance["text"], guidance["image"]
        edited = self.condition(prompt, first, options)
        if self.branch_count(guidance) == 1:
            return Branches((edited,), lambda level, e: e[0])
        unwanted = self.condition(negative_prompt, first, options, negative=True)
        if image <= 1:
            return Branches((unwanted, edited), lambda level, e: e[0] + text * (e[1] - e[0]))
        begin = first.latents if first.begin is None else first.begin[:, :, :1]
        neither = unwanted.with_first(begin.to(self.device, self.dtype))

        def combine(level: Level, e: tuple[Tensor, ...]) -> Tensor:
            return e[0] + image * (e[1] - e[0]) + text * (e[2] - e[1])

        return Branches((neither, unwanted, edited), combine)

    def branch_count(self, guidance: Guidance) -> int:
        """Returns the number of branches: 3 if guidance["image"] is over 1, else 2 or 1.

        It is 1 if neither scale is over 1.
        """
        return 3 if guidance["image"] > 1 else 2 if guidance["text"] > 1 else 1

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that one prediction's activations need.

        branches: number of branches in the batch. frames, height, width: size of the latents.

        Measurements show that memory peaks in the feed-forward of a temporal transformer at full
        resolution. With any kernels, nine tensors with the channels of the first level are alive
        there, and one with four times as many; only these are counted. PyTorch's own operations
        need almost twice as much.
        """
        values = branches * frames * height * width * 13 * self.unet.config.level_channels[0]
        return values * self.dtype.itemsize

    def meta_copy(self, device: torch.device) -> ConsistI2V:
        """Returns a copy of the backbone on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        networks = {name: meta_copy(getattr(self, name), device) for name in ("unet", "text")}
        return replace(self, codec=self.codec.meta_copy(device), **networks)

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes the conditions of one branch from placeholder inputs, to find shapes and costs.

        frames, height, width: size of the latents that the conditions are for; they do not matter.
        """
        ids = torch.zeros(self.tokenize("").shape, dtype=torch.int64, device=self.device)
        stride = torch.zeros(1, dtype=torch.int64, device=self.device)
        return self.unet.condition(self.text(ids, 0), stride)

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: base.Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts epsilon, the noise, from noisy latents: (g, c, f, h, w) in `dtype`.

        latents (n, c, f, h, w): n samples in `dtype`, for which `conditions` holds g branches (see
        `Conditions.stack`); their frame 0 is the clean first frame. t: the timestep, a whole number
        from 0 to 999, or an int64 tensor without dims on the device, which is not checked. taps:
        the hooks to call at the sites. Raises InputError if t is another number, or a first frame
        in the conditions has another size.
        """
        assert isinstance(conditions, Conditions), "conditions are those of the same backbone"
        for first in conditions.first.values():
            if first.shape[3:] != latents.shape[3:]:
                raise InputError(
                    f"latents: {tuple(latents.shape)} are not of conditions of (h, w) "
                    f"{tuple(first.shape[3:])}"
                )
        if not isinstance(t, Tensor):
            timestep = checks.whole("t", t, 0, TRAIN_STEPS - 1)
            t = torch.full((), timestep, device=latents.device)
        return self.unet(latents, t.expand(latents.shape[0]), conditions, taps)
