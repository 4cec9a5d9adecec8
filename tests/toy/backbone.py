"""A backbone that differs from I2VGen-XL in all that a backbone may differ in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.backbones.base import Branches, Defaults, FirstFrame, Guidance, Options
from anyv2v.diffusion.schedule import Level, NoiseSchedule
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.meta import meta_copy
from tests.toy.codec import GROUP, MULTIPLE, Autoencoder, ToyCodec
from tests.toy.network import DIM, LETTERS, SITES, WORDS, Transformer, Words
from tests.toy.schedule import Flow

SAMPLERS = ("euler", "ancestral")
FASTEST = 4.0

PUBLISHED_SETTINGS = {
    "steps": 5,
    "guidance": {"text": 3.0, "image": 1.5},
    "negative_prompt": "bad",
    "injection": {"map": 0.6, "hidden": 0.4, "cross": 0.2},
}
"""What is left out of a folder's defaults."""


@dataclass(frozen=True)
class Conditions:
    context: Tensor
    """(g, WORDS + 1, DIM): the prompt's tokens, and the first frame's."""
    speed: Tensor
    """(g,)"""
    samples: tuple[int, ...] = (0,)

    @staticmethod
    def stack(branches: Sequence[Conditions], samples: Sequence[int] | None = None) -> Conditions:
        return Conditions(
            torch.cat([branch.context for branch in branches]),
            torch.cat([branch.speed for branch in branches]),
            tuple(range(len(branches)) if samples is None else samples),
        )


@dataclass(frozen=True)
class Toy:
    transformer: Transformer
    words: Words
    codec: ToyCodec
    defaults: Defaults

    name = "toy"
    sites = SITES
    correspondence_site = "blocks.1.hidden"
    groups = {
        "map": frozenset({"blocks.0.map", "blocks.1.map"}),
        "hidden": frozenset({"blocks.0.hidden"}),
        "cross": frozenset({"blocks.1.cross"}),
    }
    published_settings = PUBLISHED_SETTINGS
    schedule = Flow()
    pinned_frames = 1
    half_dtype = torch.float16
    stretches_bilinearly = False
    loaded_on_demand = frozenset({"words"})

    @staticmethod
    def frames_per_latent(config: dict) -> int:
        return GROUP

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        return {"transformer": Transformer, "words": Words, "pixels": Autoencoder}

    @property
    def device(self) -> torch.device:
        return self.transformer.place.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.place.dtype

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        return (self.words,)

    def options(self, given: Options) -> Options:
        own = {"speed": 1.0, "sampler": SAMPLERS[0]}
        checks.known("options", given, own, "option")
        found = {**own, **given}
        if not checks.positive("options: speed", found["speed"]) <= FASTEST:
            raise InputError(f"options: speed {found['speed']} is above {FASTEST}")
        checks.one_of("options: sampler", found["sampler"], SAMPLERS)
        return found

    def sampler(self, options: Options) -> NoiseSchedule:
        return Flow(ancestral=options["sampler"] == "ancestral")

    def uses_edited_source_frame(self, options: Options) -> bool:
        return False

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        latents = first.latents.to(self.device, self.dtype)
        image = self.transformer.image(latents.mean((2, 3, 4)))[:, None]
        words = self.words(letters(prompt).to(self.device))
        context = torch.cat([words, torch.zeros_like(image) if negative else image], 1)
        return Conditions(context, context.new_full((1,), options["speed"]))

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Of the first frame where there is much noise, and of the prompt everywhere."""
        both = self.condition(prompt, first, options)
        if self.branch_count(guidance) == 1:
            return Branches((both,), lambda level, f: f[0])
        image = self.condition(negative_prompt, first, options)
        none = self.condition(negative_prompt, first, options, negative=True)

        def combine(level: Level, f: tuple[Tensor, ...]) -> Tensor:
            scale = 1 + (guidance["image"] - 1) * level.sigma
            return f[0] + scale * (f[1] - f[0]) + guidance["text"] * (f[2] - f[1])

        return Branches((none, image, both), combine)

    def branch_count(self, guidance: Guidance) -> int:
        return 1 if all(scale == 1 for scale in guidance.values()) else 3

    @staticmethod
    def size_multiple(config: dict) -> int:
        return MULTIPLE

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        return branches * frames * height * width * DIM * self.dtype.itemsize

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        rows = torch.cat([latents[i : i + 1] for i in conditions.samples])
        return self.transformer(rows, t, conditions.context, conditions.speed, taps)

    def meta_copy(self, device: torch.device) -> Toy:
        return replace(
            self,
            transformer=meta_copy(self.transformer, device),
            words=meta_copy(self.words, device),
            codec=self.codec.meta_copy(device),
        )

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        context = torch.empty(1, WORDS + 1, DIM, dtype=self.dtype, device=self.device)
        return Conditions(context, torch.empty(1, dtype=self.dtype, device=self.device))

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Toy:
        return cls(
            networks["transformer"],
            networks["words"],
            ToyCodec(networks["pixels"]),
            defaults,
        )


def letters(prompt: str) -> Tensor:
    """int64 (1, WORDS); 0 is no letter."""
    ids = [1 + ord(letter) % (LETTERS - 1) for letter in prompt[:WORDS]]
    return torch.tensor([ids + [0] * (WORDS - len(ids))])
