"""Wan 2.2 TI2V-5B behind the interface that the editor uses, `Backbone`."""

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
from anyv2v.backbones.wan.conditioning import Conditions
from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.defaults import PUBLISHED_SETTINGS
from anyv2v.backbones.wan.schedule import TRAIN_STEPS, FlowSchedule
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.checks import shown
from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS, Taps
from anyv2v.runtime.finite import check_finite
from anyv2v.runtime.meta import meta_copy
from anyv2v.umt5.encoder import TextEncoder, UMT5Config
from anyv2v.umt5.tokenizer import Tokenizer
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.vae.video_codec import VideoCodec

TOKENS = ("all", "rest")
"""The values of an option such as "map_tokens": all tokens, or all but those of latent frame 0."""
OPTIONS: Options = {
    "map_tokens": "all",
    "value_tokens": "rest",
    "context_tokens": "rest",
    "hidden_tokens": "all",
}
"""Name of an option -> its default; see `Wan.options`."""


@dataclass(frozen=True)
class _Schedule:
    """Section "schedule" of a weights folder's config.json."""

    train_steps: int
    shift: float


@dataclass(frozen=True)
class Wan:
    """Wan's networks and settings, as the editor uses them; implements `base.Backbone`.

    The first latent frame is the clip's clean first frame; it is never noised. A latent frame after
    it stands for several frames of the clip, 4 in TI2V-5B, whose clips therefore have 4 k + 1.
    """

    transformer: Transformer
    """The network that predicts the velocity, noise - clean."""
    text: TextEncoder
    """UMT5's encoder, whose weights are in memory only while a text is encoded."""
    tokenizer: Tokenizer
    """The tokenizer of the text encoder."""
    groups: Mapping[str, frozenset[str]]
    """Injection group -> names of its layers (sites), as the weights' config.json lists them."""
    codec: VideoCodec
    """The autoencoder between frames and latents."""
    defaults: Defaults
    """The settings that the loaded weights work best with."""
    schedule: FlowSchedule
    """The noise schedule of inversion and sampling."""
    embeddings: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Text -> its embedding (1, tokens, c) on the host. A text that is found here is not encoded;
    `encode_text` adds those that are not. `anyv2v.umt5.embeddings` saves and loads such a dict."""

    name = "wan"
    pinned_frames = 1
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    stretches_bilinearly: ClassVar[bool] = False
    loaded_on_demand: ClassVar[frozenset[str]] = frozenset({"text"})
    published_settings: ClassVar[PublishedSettings] = PUBLISHED_SETTINGS

    @staticmethod
    def size_multiple(config: dict) -> int:
        """Returns the number of pixels that must divide a frame's sides: the side of a token.

        config: the contents of a weights folder's config.json. Raises InputError if its section
        "vae" or "transformer" is missing or wrong.
        """
        side = section(config, "vae", VideoAutoencoderConfig).spatial_compression
        return side * _latents_per_token(section(config, "transformer", TransformerConfig))

    @staticmethod
    def frames_per_latent(config: dict) -> int:
        """Returns the number of frames that each latent frame after the first stands for.

        config: the contents of a weights folder's config.json. Raises InputError if its section
        "vae" is missing or wrong.
        """
        return section(config, "vae", VideoAutoencoderConfig).temporal_compression

    @staticmethod
    def networks(config: dict) -> dict[str, Callable[[], nn.Module]]:
        """Returns the functions that build the networks "transformer", "vae" and "text".

        config: the contents of the weights folder's config.json. Each function raises InputError if
        the network's section of the config is missing or wrong.
        """
        return {
            "transformer": lambda: Transformer(section(config, "transformer", TransformerConfig)),
            "vae": lambda: VideoAutoencoder(section(config, "vae", VideoAutoencoderConfig)),
            "text": lambda: TextEncoder(section(config, "text", UMT5Config)),
        }

    @classmethod
    def assemble(
        cls, config: dict, networks: dict[str, nn.Module], folder: Path, defaults: Defaults
    ) -> Wan:
        """Builds the backbone from loaded networks and the tokenizer in a weights folder.

        config: the contents of the folder's config.json. networks: name -> network, built by the
        functions of the method `networks`. defaults: the settings for what a caller does not
        specify. Raises InputError if the noise schedule is not one of `FlowSchedule`'s, if the
        networks do not fit each other, or if the tokenizer does not match the text encoder.
        """
        schedule = section(config, "schedule", _Schedule)
        if schedule.train_steps != TRAIN_STEPS:
            raise InputError(f"schedule: train_steps is {schedule.train_steps}, not {TRAIN_STEPS}")
        transformer = cast(Transformer, networks["transformer"])
        vae, text = cast(VideoAutoencoder, networks["vae"]), cast(TextEncoder, networks["text"])
        _check_fit(transformer.config, vae.config, text.config)
        size = text.config.tokens, text.config.vocab_size
        return cls(
            transformer=transformer,
            text=text,
            tokenizer=Tokenizer.load(folder / "tokenizer", *size),
            groups=read_groups(config),
            codec=VideoCodec(vae, _latents_per_token(transformer.config)),
            defaults=defaults,
            schedule=FlowSchedule(schedule.shift),
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the transformer's sites, where it calls hooks (see `Taps`), in forward order."""
        return self.transformer.sites

    @property
    def correspondence_site(self) -> str:
        """The feed-forward network of the middle block: one vector for each token."""
        return f"block.{self.transformer.config.layers // 2}.ff"

    @property
    def device(self) -> torch.device:
        """The device of the transformer's weights."""
        return self.transformer.out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights of the transformer's blocks."""
        return self.transformer.dtype

    @property
    def conditioners(self) -> tuple[nn.Module, ...]:
        """The text encoder, which `condition` runs and `predict` does not."""
        return (self.text,)

    def tokenize(self, text: str) -> Tensor:
        """Returns the token ids of a text, int64 (1, n): with an end token, and not padded."""
        return self.tokenizer(text)

    def encode_text(self, text: str, clip_skip: int = 0) -> Tensor:
        """Encodes a text as UMT5's last hidden states: (1, tokens, c) in `dtype`.

        The vectors after those of the text's own tokens are zeros. A text in `embeddings` is not
        encoded again. clip_skip: 0, because no layers are skipped. Raises InputError for another,
        and NotFiniteError if a hidden state is infinite or NaN.
        """
        checks.whole("clip_skip", clip_skip, 0, 0)
        if text not in self.embeddings:
            hidden = self.text(self.tokenize(text).to(self.device))
            check_finite(hidden, f"the text encoder, of {shown(text)}", self.dtype)
            self.embeddings[text] = hidden.cpu()
        return self.embeddings[text].to(self.device, self.dtype)

    def options(self, options: Options) -> Options:
        """Returns which tokens are injected at each kind of site, from `options` or by default.

        "map_tokens", "value_tokens", "context_tokens" and "hidden_tokens" are "all" or "rest", for
        the sites that `chosen_sites` puts into the group of that name, in whatever group. With
        "rest" the tokens of latent frame 0 stay the edit's own, and for "context" those of the
        source's first frame are not attended to: else the edit would see both first frames. It is
        the default of "value" and "context", which hold what things look like. Raises InputError
        for any other option or value.
        """
        checks.known("options", options, OPTIONS, "option")
        found = {**OPTIONS, **options}
        return {name: checks.one_of(f"options: {name}", x, TOKENS) for name, x in found.items()}

    def sampler(self, options: Options) -> FlowSchedule:
        """Returns `schedule`: sampling and inversion use the same noise schedule."""
        return self.schedule

    def uses_edited_source_frame(self, options: Options) -> bool:
        """Returns False: the source's branch sees the source's own first frame."""
        return False

    def condition(
        self, prompt: str, first: FirstFrame, options: Options, negative: bool = False
    ) -> Conditions:
        """Makes the conditions of one branch from a prompt; the first frame is in the latents.

        options: completed by the method `options`. negative: ignored, because the branch that
        guidance leads away from differs in its prompt alone.
        """
        conditions = self.transformer.condition(self.encode_text(prompt))
        return replace(conditions, without_first=_without_first(options))

    def branches(
        self,
        prompt: str,
        negative_prompt: str,
        first: FirstFrame,
        guidance: Guidance,
        options: Options,
    ) -> Branches:
        """Makes the branches of classifier-free guidance: `negative_prompt`, then `prompt`.

        If guidance["text"] is 1 or less, there is only the second. options: completed by the method
        `options`.
        """
        scale = guidance["text"]
        edited = self.condition(prompt, first, options)
        if self.branch_count(guidance) == 1:
            return Branches((edited,), lambda level, v: v[0])
        unwanted = self.condition(negative_prompt, first, options, negative=True)
        return Branches((unwanted, edited), lambda level, v: v[0] + scale * (v[1] - v[0]))

    def branch_count(self, guidance: Guidance) -> int:
        """Returns the number of branches: 2 if guidance["text"] is over 1, else 1."""
        return 2 if guidance["text"] > 1 else 1

    def activation_bytes(self, branches: int, frames: int, height: int, width: int) -> int:
        """Returns a lower bound on the memory, in bytes, that one prediction's activations need.

        branches: number of branches in the batch. frames, height, width: size of the latents.

        Memory peaks in a feed-forward network: its hidden vectors are alive before and after GELU,
        beside the tokens in float32.
        """
        config, size = self.transformer.config, self.dtype.itemsize
        _, p, q = config.patch
        tokens = branches * frames * (height // p) * (width // q)
        return tokens * (2 * size * config.ff_dim + 4 * config.dim)

    def meta_copy(self, device: torch.device) -> Wan:
        """Returns a copy of the backbone on `device` with uninitialized weights.

        Such a copy serves to count operations and find shapes; see `anyv2v.runtime.meta`.
        """
        networks = {
            name: meta_copy(getattr(self, name), device) for name in ("transformer", "text")
        }
        return replace(self, codec=self.codec.meta_copy(device), embeddings={}, **networks)

    def meta_conditions(self, frames: int, height: int, width: int) -> Conditions:
        """Makes the conditions of one branch from placeholder inputs, to find shapes and costs.

        The prompt has as many tokens as it may have. frames, height, width: size of the latents
        that the conditions are for; they do not matter.
        """
        size = 1, self.text.config.tokens
        ids = torch.zeros(size, dtype=torch.int64, device=self.device)
        conditions = self.transformer.condition(self.text(ids))
        return replace(conditions, without_first=_without_first(OPTIONS))

    def predict(
        self, latents: Tensor, t: float | Tensor, conditions: base.Conditions, taps: Taps = NO_TAPS
    ) -> Tensor:
        """Predicts the velocity, noise - clean, from noisy latents: (g, c, f, h, w) float32.

        latents (n, c, f, h, w): n samples in `dtype`, for which `conditions` holds g branches (see
        `Conditions.stack`); their frame 0 is the clean first frame. t: the timestep, a number from
        0 to 1000, or a tensor without dims on the device, which is not checked. taps: the hooks to
        call at the sites. Raises InputError if t is another number, or the latents do not fit.
        """
        assert isinstance(conditions, Conditions), "conditions are those of the same backbone"
        if not isinstance(t, Tensor):
            if not 0 <= checks.finite("t", t) <= TRAIN_STEPS:
                raise InputError(f"t: {t:g} is not in 0..{TRAIN_STEPS}")
            t = torch.full((), t, dtype=torch.float64, device=latents.device)
        return self.transformer(latents, t, conditions, taps)


def _without_first(options: Options) -> frozenset[str]:
    """The kinds of sites whose injection leaves latent frame 0 out."""
    return frozenset(name.removesuffix("_tokens") for name, x in options.items() if x == "rest")


def _latents_per_token(config: TransformerConfig) -> int:
    _, height, width = config.patch
    if height != width:
        raise InputError(f"transformer: patch {config.patch} is not square")
    return height


def _check_fit(
    transformer: TransformerConfig, vae: VideoAutoencoderConfig, text: UMT5Config
) -> None:
    """Raises InputError unless the networks fit each other, and the form is TI2V's."""
    facts = (
        ("transformer: in_channels", transformer.in_channels, "vae", vae.latent_channels),
        ("transformer: out_channels", transformer.out_channels, "vae", vae.latent_channels),
        ("transformer: text_dim", transformer.text_dim, "text", text.hidden_size),
        ("transformer: text_tokens", transformer.text_tokens, "text", text.tokens),
    )
    for what, own, other, theirs in facts:
        if own != theirs:
            raise InputError(f"{what} is {own}, that of {other} {theirs}")
    if not transformer.clean_first_frame:
        raise InputError(
            "transformer: clean_first_frame is false; only networks that are given the first frame "
            "as clean latents are implemented, as TI2V-5B is"
        )
