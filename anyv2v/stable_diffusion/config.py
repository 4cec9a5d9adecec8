"""The sizes of a Stable Diffusion network, and the timesteps at which it is sampled."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v import checks
from anyv2v.errors import InputError

SPACINGS = ("leading", "linspace")


@dataclass(frozen=True)
class UNet2DConfig:
    """Section "unet" of config.json. Raises InputError for sizes that do not fit together."""

    in_channels: int = field(metadata={"key": "channels_in"})
    """Channels of the input: 4 for noisy latents, 8 with the latents of an image concatenated."""
    out_channels: int = field(metadata={"key": "channels_out"})
    """Channels of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level, from full resolution down."""
    attention: tuple[bool, ...]
    """Whether each level has transformers as well as convolutions."""
    layers: int
    """Layers per level on the way down; a level on the way up has one more."""
    heads: int
    """Heads of every attention; the head dim is channels / heads."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the context vectors that the cross-attentions read."""
    groups: int
    """Groups of every group normalization."""

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
        """Length of the time embedding."""
        return 4 * self.level_channels[0]


@dataclass(frozen=True)
class ScheduleConfig:
    """Section "schedule" of config.json. Raises InputError for an unknown spacing."""

    spacing: str
    """Spacing of the Euler sampler's timesteps, one of `SPACINGS`; see `DiscreteSchedule`."""

    def __post_init__(self):
        checks.one_of("schedule: spacing", self.spacing, SPACINGS)
