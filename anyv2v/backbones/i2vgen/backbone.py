"""I2VGen-XL (arXiv 2311.04145) as the editor sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.backbones.base import Branches, Defaults, FirstFrame, Guidance, Options
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.defaults import NEGATIVE_PROMPT, OWN
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
"""The one schedule there is; a folder that was trained on another is refused."""


@dataclass(frozen=True)
class I2VGen:
    unet: UNet
    text: TextEncoder
    vision: VisionEncoder
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    groups: Mapping[str, frozenset[str]]
    codec: ImageCodec
    defaults: Defaults
    schedule: TableSchedule = field(default_factory=schedule)

    name = "i2vgen"
    pinned = 0
    apart = frozenset()
    own = OWN

    @staticmethod
    def multiple(config: dict) -> int:
        return section(config, "vae", AutoencoderConfig).factor

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
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
        # the default is nobody's own words: that a small tower does not read it all is not told
        tokenizer.lost(NEGATIVE_PROMPT)
        return cls(
            unet=networks["unet"],
            text=networks["text"],
            vision=networks["vision"],
            tokenizer=tokenizer,
            preprocess=preprocess,
            groups=_groups(config.get("injection")),
            codec=ImageCodec(networks["vae"]),
            defaults=defaults,
        )

    @property
    def sites(self) -> tuple[str, ...]:
        return self.unet.sites

    @property
    def device(self) -> torch.device:
        return self.unet.conv_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_out.weight.dtype

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        return self.text, self.vision

    def tokenize(self, text: str) -> Tensor:
        """int64 (1, 77)."""
        return self.tokenizer(text)

    def encode_text(self, text: str, clip_skip: int = 1) -> Tensor:
        """(1, 77, d) in `dtype`: hidden states before the last `clip_skip` layers, final norm."""
        hidden = self.text(self.tokenize(text).to(self.device), clip_skip)
        return check_finite(hidden, f"the text tower, of {shown(text)}", self.dtype)

    def encode_image(self, image: np.ndarray, width: int, black_edge: bool = False) -> Tensor:
        """(1, d) in `dtype`: CLIP embedding of an image (h, w, 3) uint8 cropped to width^2 pixels.

        `black_edge` keeps the original's crop, which at some sizes leaves a black row.
        """
        pixels = preprocess(image, width, self.preprocess, black_edge)
        embedding = self.vision(pixels.to(self.device, self.dtype))
        return check_finite(embedding, "the image tower", self.dtype)

    def options(self, given: Options) -> Options:
        checks.known("options", given, ("fps",), "option")
        return {"fps": checks.count("fps", given.get("fps", self.defaults.fps))}

    def sampler(self, options: Options) -> TableSchedule:
        return self.schedule

    def edited_source(self, options: Options) -> bool:
        return False

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
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
        """Classifier-free guidance (arXiv 2207.12598); one branch if it is 1 or less."""
        scale, edited = guidance["text"], self.condition(prompt, first, options)
        if scale <= 1:
            return Branches((edited,), lambda level, v: v[0])
        plain = self.condition(negative_prompt, first, options, negative=True)
        return Branches((plain, edited), lambda level, v: v[0] + scale * (v[1] - v[0]))

    def branch_count(self, guidance: Guidance) -> int:
        return 2 if guidance["text"] > 1 else 1

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        # measured: the feed-forward of the first temporal transformer, eight heads wide, holds ten
        # times its width at full resolution. what else there is at that moment is left out
        values = branches * frames * height * width * 10 * 8 * self.unet.config.head_dim
        return values * self.dtype.itemsize

    def blank(self, device: torch.device) -> I2VGen:
        networks = {
            name: meta_copy(getattr(self, name), device) for name in ("unet", "text", "vision")
        }
        return replace(self, codec=self.codec.blank(device), **networks)

    def blank_conditions(self, frames: int, height: int, width: int) -> Conditions:
        device, dtype, size = self.device, self.dtype, self.preprocess.size
        ids = torch.zeros(self.tokenize("").shape, dtype=torch.int64, device=device)
        pixels = torch.empty(1, 3, size, size, dtype=dtype, device=device)
        latents = torch.empty(
            1, self.unet.config.channels, frames, height, width, dtype=dtype, device=device
        )
        fps = torch.zeros(1, dtype=torch.int64, device=device)
        return self.unet.condition(self.text(ids, 1), self.vision(pixels), latents, fps)

    def predict(
        self, latents: Tensor, t: int | Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        of = tuple(conditions.latents.shape[2:])
        if tuple(latents.shape[2:]) != of:
            raise InputError(
                f"latents: {tuple(latents.shape)} are not of conditions of (f, h, w) {of}"
            )
        if not isinstance(t, Tensor):
            checks.whole("t", t, 0, TRAIN_STEPS - 1)
            t = torch.full((), t, device=latents.device)
        timesteps = t.expand(latents.shape[0])
        return self.unet(latents, timesteps, conditions, taps)


def image_latents(first: Tensor, frames: int) -> Tensor:
    """First frame's latents (b, c, 1, h, w) -> (b, c, frames, h, w), as I2VGen-XL is given them.

    Frame k > 0 holds the constant k / (frames - 1), which tells the network its place in time.
    """
    place = torch.arange(1, frames, dtype=first.dtype, device=first.device) / max(frames - 1, 1)
    rest = place.view(1, 1, -1, 1, 1).expand(*first.shape[:2], -1, *first.shape[3:])
    return torch.cat([first, rest], dim=2)


def _groups(injection: object) -> dict[str, frozenset[str]]:
    if not isinstance(injection, dict) or not all(isinstance(x, list) for x in injection.values()):
        raise InputError("there is no section 'injection' of lists of sites")
    return {name: frozenset(sites) for name, sites in injection.items()}
