"""I2VGen-XL (arXiv 2311.04145) behind the interface that the editor uses, `Backbone`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
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
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.defaults import NEGATIVE_PROMPT, PUBLISHED_SETTINGS
from anyv2v.backbones.i2vgen.schedule import OFFSET, TRAIN_STEPS, schedule
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.checks import shown
from anyv2v.clip.preprocess import PreprocessConfig, preprocess
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.config import section
from anyv2v.diffusion.schedule import TableSchedule
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.finite import check_finite
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.vae.codec import ImageCodec

SCHEDULE = {"train_steps": TRAIN_STEPS, "steps_offset": OFFSET}
"""The only noise schedule that `I2VGen.assemble` accepts in config.json."""


@dataclass(frozen=True)
class I2VGen:
    """I2VGen-XL's networks and settings, as the editor uses them; implements `base.Backbone`."""

    unet: UNet
    """The network that predicts v."""
    text: TextEncoder
    """CLIP's text encoder."""
    vision: VisionEncoder
    """CLIP's image encoder."""
    tokenizer: Tokenizer
    """The tokenizer of the text encoder."""
    preprocess: PreprocessConfig
    """How images are prepared for the image encoder."""
    groups: Mapping[str, frozenset[str]]
    """Injection group -> names of its layers (sites), as the weights' config.json lists them."""
    codec: ImageCodec
    """The autoencoder between frames and latents."""
    defaults: Defaults
    """The settings that the loaded weights work best with."""
    schedule: TableSchedule = field(default_factory=schedule)
    """The noise schedule of inversion and sampling."""

    name = "i2vgen"
    pinned_frames = 0
    half_dtype: ClassVar[torch.dtype] = torch.float16
    stretches_bilinearly: ClassVar[bool] = False
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
        """Returns the functions that build the networks "unet", "text", "vision" and "vae".

        config: the contents of the weights folder's config.json. Each function raises InputError if
        the network's section of the config is missing or wrong.
        """
        return {
            "unet": lambda: UNet(section(config, "unet", UNetConfig)),
            "text": lambda: TextEncoder(section(config, "text", TextConfig)),
            "vision": lambda: VisionEncoder(section(config, "vision", VisionConfig)),
            "vae": lambda: Autoencoder(section(config, "vae", AutoencoderConfig)),
        }

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> I2VGen:
        """Builds the backbone from loaded networks and the tokenizer in a weights folder.

        config: the contents of the folder's config.json. networks: name -> network, built by the
        functions of the method `networks`. defaults: the settings for what a caller does not
        specify. Raises InputError if the config's noise schedule is not `SCHEDULE`, the image
        encoder's input size differs from the preprocessing's, or the tokenizer does not match the
        text encoder.
        """
        if config.get("schedule") != SCHEDULE:
            raise InputError(f"schedule {config.get('schedule')} is not {SCHEDULE}")
        text, vision = section(config, "text", TextConfig), section(config, "vision", VisionConfig)
        preprocess = section(config, "preprocess", PreprocessConfig)
        if preprocess.size != vision.image_size:
            raise InputError(
                f"preprocess: size {preprocess.size} is not vision: image_size {vision.image_size}"
            )
        special = section(config, "tokenizer", TokenizerConfig)
        tokenizer = Tokenizer.load(folder / "tokenizer", special, text.tokens, text.vocab_size)
        # asking now keeps the tokenizer from warning later: nobody typed the default prompt, so
        # nobody needs to hear that a small text encoder cuts it
        tokenizer.lost(NEGATIVE_PROMPT)
        return cls(
            unet=cast(UNet, networks["unet"]),
            text=cast(TextEncoder, networks["text"]),
            vision=cast(VisionEncoder, networks["vision"]),
            tokenizer=tokenizer,
            preprocess=preprocess,
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
        """CLIP's text and image encoders, which `condition` runs and `predict` does not."""
        return self.text, self.vision

    def tokenize(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, 77), padded or cut to that length."""
        return self.tokenizer(text)

    def encode_text(self, text: str, clip_skip: int = 1) -> Tensor:
        """Encodes a text as CLIP's hidden states, one per token: (1, 77, d) in `dtype`.

        The last `clip_skip` layers of the text encoder are skipped, and its final norm is applied.
        Raises NotFiniteError if a hidden state is infinite or NaN.
        """
        hidden = self.text(self.tokenize(text).to(self.device), clip_skip)
        return check_finite(hidden, f"the text tower, of {shown(text)}", self.dtype)

    def encode_image(self, image: np.ndarray, width: int, black_edge: bool = False) -> Tensor:
        """Computes the CLIP embedding (1, d), in `dtype`, of an image (h, w, 3) uint8 RGB.

        width: side in pixels of the square to which the image is first resized and cropped, the
        width of the video. black_edge: whether to crop with the original code's rounding, which at
        many sizes leaves the first row or column black. Raises NotFiniteError if the embedding has
        infinite or NaN values.
        """
        pixels = preprocess(image, width, self.preprocess, black_edge)
        embedding = self.vision(pixels.to(self.device, self.dtype))
        return check_finite(embedding, "the image tower", self.dtype)

    def options(self, options: Options) -> Options:
        """Returns the only option, "fps": the frame rate that the network is conditioned on.

        The rate, in frames per second, is that in `options` or else the weights' default. Raises
        InputError if the rate is not a whole number from 1 up, or `options` has any other option.
        """
        checks.known("options", options, ("fps",), "option")
        return {"fps": checks.count("fps", options.get("fps", self.defaults.fps))}

    def sampler(self, options: Options) -> TableSchedule:
        """Returns `schedule`: sampling and inversion use the same noise schedule."""
        return self.schedule

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Returns False: a source branch is conditioned on the source clip's own first frame."""
        return False

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch from a prompt and a first frame.

        options: completed by the method `options`. negative: whether this is the branch that
        guidance leads away from; as in the original code, its CLIP image embedding is zero.
        """
        embedding = self.encode_image(first.image, first.width)
        if negative:
            embedding = torch.zeros_like(embedding)
        return self.unet.condition(
            self.encode_text(prompt),
            embedding,
            image_latents(first.latents, first.frames).to(self.device, self.dtype),
            torch.tensor([options["fps"]], device=self.device),
        )

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the branches of classifier-free guidance (arXiv 2207.12598).

        The first branch has `negative_prompt` and no CLIP image embedding, the second has `prompt`.
        If guidance["text"] is 1 or less, the branch with `prompt` is the only one. options:
        completed by the method `options`.
        """
        scale, edited = guidance["text"], self.condition(prompt, first, options)
        if scale <= 1:
            return Branches((edited,), lambda level, v: v[0])
        unwanted = self.condition(negative_prompt, first, options, negative=True)
        return Branches((unwanted, edited), lambda level, v: v[0] + scale * (v[1] - v[0]))

    def branch_count(self, guidance: Guidance) -> int:
        """Returns the number of branches: 2, or 1 if guidance["text"] is 1 or less."""
        return 2 if guidance["text"] > 1 else 1

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that one prediction's activations need.

        branches: number of branches in the batch. frames, height, width: size of the latents.

        Measurements show that memory peaks in the feed-forward of the first temporal transformer
        (`transformer_in`, at full resolution), whose tensors have ten times the channels of its
        eight attention heads. Only these tensors are counted.
        """
        values = branches * frames * height * width * 10 * 8 * self.unet.config.head_dim
        return values * self.dtype.itemsize

    def meta_copy(self, device: torch.device) -> I2VGen:
        """Returns a copy of the backbone on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        networks = {
            name: meta_copy(getattr(self, name), device) for name in ("unet", "text", "vision")
        }
        return replace(self, codec=self.codec.meta_copy(device), **networks)

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes the conditions of one branch from placeholder inputs, to find shapes and costs.

        frames, height, width: size of the latents that the conditions are for.
        """
        device, dtype, size = self.device, self.dtype, self.preprocess.size
        ids = torch.zeros(self.tokenize("").shape, dtype=torch.int64, device=device)
        pixels = torch.empty(1, 3, size, size, dtype=dtype, device=device)
        latents = torch.empty(
            1, self.unet.config.channels, frames, height, width, dtype=dtype, device=device
        )
        fps = torch.zeros(1, dtype=torch.int64, device=device)
        return self.unet.condition(self.text(ids, 1), self.vision(pixels), latents, fps)

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: base.Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts v (arXiv 2202.00512) from noisy latents: (g, c, f, h, w) in `dtype`.

        latents (n, c, f, h, w): n samples in `dtype`, for which `conditions` holds g branches (see
        `Conditions.stack`). t: the timestep, a whole number from 0 to 999, or an int64 tensor
        without dims on the device, which is not checked. taps: the hooks to call at the sites.
        Raises InputError if t is another number or the conditions are for other sizes.
        """
        assert isinstance(conditions, Conditions), "conditions are those of the same backbone"
        expected_size = tuple(conditions.latents.shape[2:])
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


def image_latents(first: Tensor, frames: int) -> Tensor:
    """Extends the first frame's latents (b, c, 1, h, w) to a clip: (b, c, frames, h, w).

    As I2VGen-XL expects, frame 0 holds the latents, and every other frame k is filled with the
    constant k / (frames - 1), which tells the network the frame's position in the clip.
    """
    position = torch.arange(1, frames, dtype=first.dtype, device=first.device) / max(frames - 1, 1)
    rest = position.view(1, 1, -1, 1, 1).expand(*first.shape[:2], -1, *first.shape[3:])
    return torch.cat([first, rest], dim=2)
