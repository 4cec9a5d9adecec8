"""SEINE (arXiv 2310.20700) behind the interface that the editor uses, `Backbone`."""

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
from anyv2v.backbones.defaults import read_groups
from anyv2v.backbones.seine.conditioning import Conditions, masked_video
from anyv2v.backbones.seine.config import UNetConfig
from anyv2v.backbones.seine.defaults import PUBLISHED_SETTINGS
from anyv2v.backbones.seine.gray import GrayAutoencoder
from anyv2v.backbones.seine.schedule import (
    OFFSET,
    TRAIN_STEPS,
    DDPMSchedule,
    ddim_schedule,
)
from anyv2v.backbones.seine.unet import UNet
from anyv2v.checks import shown
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.config import section
from anyv2v.diffusion.schedule import NoiseSchedule, TableSchedule
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.finite import check_finite
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import AutoencoderConfig
from anyv2v.vae.codec import ImageCodec

SCHEDULE = {"train_steps": TRAIN_STEPS, "steps_offset": OFFSET}
"""The only noise schedule that `Seine.assemble` accepts in config.json."""
SAMPLERS = ("ddpm", "ddim")
"""The values of the option "sampler", the default first."""


@dataclass(frozen=True)
class Seine:
    """SEINE's networks and settings, as the editor uses them; implements `base.Backbone`."""

    unet: UNet
    """The network that predicts the noise."""
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
    schedule: TableSchedule = field(default_factory=ddim_schedule)
    """The noise schedule of inversions, and of sampling by DDIM."""

    name = "seine"
    pinned_frames = 0
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
        """Returns the functions that build the networks "unet", "vae" and "text".

        config: the contents of the weights folder's config.json. Each function raises InputError if
        the network's section of the config is missing or wrong.
        """
        return {
            "unet": lambda: UNet(section(config, "unet", UNetConfig)),
            "vae": lambda: GrayAutoencoder(section(config, "vae", AutoencoderConfig)),
            "text": lambda: TextEncoder(section(config, "text", TextConfig)),
        }

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Seine:
        """Builds the backbone from loaded networks and the tokenizer in a weights folder.

        config: the contents of the folder's config.json. networks: name -> network, built by the
        functions of the method `networks`. defaults: the settings for what a caller does not
        specify. Raises InputError if the config's noise schedule is not `SCHEDULE`, it lists no
        sites for injection, or the tokenizer does not match the text encoder.
        """
        if config.get("schedule") != SCHEDULE:
            raise InputError(f"schedule {config.get('schedule')} is not {SCHEDULE}")
        text = section(config, "text", TextConfig)
        special = section(config, "tokenizer", TokenizerConfig)
        return cls(
            unet=cast(UNet, networks["unet"]),
            text=cast(TextEncoder, networks["text"]),
            tokenizer=Tokenizer.load(folder / "tokenizer", special, text.tokens, text.vocab_size),
            groups=read_groups(config),
            codec=ImageCodec(cast(GrayAutoencoder, networks["vae"])),
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
        """CLIP's text encoder, and the autoencoder's encoder, which encodes the gray frames."""
        return self.text, self.codec.encoder

    def tokenize(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, 77), padded or cut to that length."""
        return self.tokenizer(text)

    def encode_text(self, text: str, clip_skip: int = 0) -> Tensor:
        """Encodes a text as CLIP's hidden states, one per token: (1, 77, d) in `dtype`.

        The last `clip_skip` layers of the text encoder are skipped, none of them for SEINE, and its
        final norm is applied. Raises NotFiniteError if a hidden state is infinite or NaN.
        """
        hidden = self.text(self.tokenize(text).to(self.device), clip_skip)
        return check_finite(hidden, f"the text tower, of {shown(text)}", self.dtype)

    def options(self, options: Options) -> Options:
        """Returns the only option, "sampler": "ddpm", the default, or "ddim".

        Raises InputError if `options` has another value or any other option.
        """
        checks.known("options", options, ("sampler",), "option")
        sampler = options.get("sampler", SAMPLERS[0])
        return {"sampler": checks.one_of("options: sampler", sampler, SAMPLERS)}

    def sampler(self, options: Options) -> NoiseSchedule:
        """Returns the noise schedule of sampling: `schedule` for "ddim", else one that adds noise.

        options: completed by the method `options`.
        """
        return self.schedule if options["sampler"] == "ddim" else DDPMSchedule(self.schedule)

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Returns False: a source branch is conditioned on the source clip's own first frame."""
        return False

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch from a prompt and a first frame.

        options: completed by the method `options`. negative: whether this is the branch that
        guidance leads away from; it differs in the prompt alone.
        """
        return self.unet.condition(self.encode_text(prompt), self._masked_video(first))

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the branches of classifier-free guidance (arXiv 2207.12598).

        The first branch has `negative_prompt`, the second has `prompt`. If guidance["text"] is 1 or
        less, the branch with `prompt` is the only one. options: completed by the method `options`.
        """
        scale, masked = guidance["text"], self._masked_video(first)
        edited = self.unet.condition(self.encode_text(prompt), masked)
        if scale <= 1:
            return Branches((edited,), lambda level, e: e[0])
        unwanted = self.unet.condition(self.encode_text(negative_prompt), masked)
        return Branches((unwanted, edited), lambda level, e: e[0] + scale * (e[1] - e[0]))

    def branch_count(self, guidance: Guidance) -> int:
        """Returns the number of branches: 2, or 1 if guidance["text"] is 1 or less."""
        return 2 if guidance["text"] > 1 else 1

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that one prediction's activations need.

        branches: number of branches in the batch. frames, height, width: size of the latents.

        Counted are the tensors of the first resnet of the last up level, at full resolution: its
        input, before and after the norm, which has the channels of two levels, what its first
        convolution returns, and the skip features for the layers after it.
        """
        first, second, *_ = self.unet.config.level_channels
        channels = 2 * (first + second) + (1 + self.unet.config.layers) * first
        return branches * frames * height * width * channels * self.dtype.itemsize

    def meta_copy(self, device: torch.device) -> Seine:
        """Returns a copy of the backbone on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        return replace(
            self,
            codec=self.codec.meta_copy(device),
            unet=meta_copy(self.unet, device),
            text=meta_copy(self.text, device),
        )

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes the conditions of one branch from placeholder inputs, to find shapes and costs.

        frames, height, width: size of the latents that the conditions are for.
        """
        device, dtype = self.device, self.dtype
        ids = torch.zeros(self.tokenize("").shape, dtype=torch.int64, device=device)
        first = torch.empty(1, self.codec.channels, 1, height, width, dtype=dtype, device=device)
        gray = self._autoencoder.encode_gray(height, width)
        return self.unet.condition(self.text(ids, 0), masked_video(first, gray, frames))

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: base.Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts the noise in latents (arXiv 2006.11239): (g, c, f, h, w) in `dtype`.

        latents (n, c, f, h, w): n samples in `dtype`, for which `conditions` holds g branches (see
        `Conditions.stack`). t: the timestep, a whole number from 0 to 999, or an int64 tensor
        without dims on the device, which is not checked. taps: the hooks to call at the sites.
        Raises InputError if t is another number or the conditions are for other sizes.
        """
        assert isinstance(conditions, Conditions), "conditions are those of the same backbone"
        expected_size = tuple(conditions.masked.shape[2:])
        if tuple(latents.shape[2:]) != expected_size:
            raise InputError(
                f"latents: {tuple(latents.shape)} are not of conditions of (f, h, w) "
                f"{expected_size}"
            )
        if not isinstance(t, Tensor):
            timestep = checks.whole("t", t, 0, TRAIN_STEPS - 1)
            t = torch.full((), timestep, device=latents.device)
        timesteps = t.expand(latents.shape[0])
        return self.unet(latents, timesteps, conditions, taps)

    @property
    def _autoencoder(self) -> GrayAutoencoder:
        return cast(GrayAutoencoder, self.codec.vae)

    def _masked_video(self, first: FirstFrame) -> Tensor:
        """The mask and the latents of a clip of which `first` is known: (1, 1 + c, f, h, w)."""
        latents = first.latents.to(self.device, self.dtype)
        gray = self._autoencoder.encode_gray(*latents.shape[3:])
        check_finite(gray, "the autoencoder's encoder, of gray frames", self.dtype)
        return masked_video(latents, gray, first.frames)
