"""The sections "unet" and "schedule" of config.json in a folder of Stable Diffusion weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v import checks
from anyv2v.errors import InputError

SPACINGS = ("leading", "linspace")
"""Spacings of the Euler sampler's timesteps; see `DiscreteSchedule`."""


@dataclass(frozen=True)
class UNet2DConfig:
    """Section "unet" of a weights folder's config.json: the sizes of Stable Diffusion's UNet.

    Raises InputError if `level_channels` and `attention` differ in length, or a level's channels
    are not divisible by `groups` and by `heads`.
    """

    in_channels: int = field(metadata={"key": "channels_in"})
    """Channels of the input: 4 for noisy latents alone (Stable Diffusion), 8 for noisy latents
    concatenated with the latents of an image (InstructPix2Pix)."""
    out_channels: int = field(metadata={"key": "channels_out"})
    """Channels of the output, the same number as of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level (resolution), from full resolution down."""
    attention: tuple[bool, ...]
    """For each level, from full resolution down, whether it has transformers."""
    layers: int
    """Number of layers in each down level; each up level has one more."""
    heads: int
    """Number of heads of every attention; a head's vectors have the length channels / heads."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the text's context vectors, which the cross-attentions read."""
    groups: int
    """Number of channel groups in every group normalization."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        object.__setattr__(self, "attention", tuple(self.attention))
        if len(self.level_channels) != len(self.attention):
            raise InputError(
                f"unet: widths {self.level_channels} and attention {self.attention} disagree"
            )
        for channels in self.level_channels:
            if channels % self.groups or channels % self.heads:
                raise InputError(
                    f"unet: width {channels} is not divisible by groups {self.groups} and "
                    f"heads {self.heads}"
                )

    @property
    def time_dim(self) -> int:
        """Length of the time embedding: four times the channels of the first level."""
        return 4 * self.level_channels[0]


@dataclass(frozen=True)
class ScheduleConfig:
    """Section "schedule" of a weights folder's config.json.

    Raises InputError if the spacing is unknown.
    """

    spacing: str
    """Spacing of the Euler sampler's timesteps, "leading" or "linspace"; see `DiscreteSchedule`."""

    def __post_init__(self):
        checks.one_of("schedule: spacing", self.spacing, SPACINGS)
