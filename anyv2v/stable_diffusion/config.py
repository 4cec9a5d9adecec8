"""The sizes of a Stable Diffusion network, and where it is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v import checks
from anyv2v.errors import InputError

SPACINGS = ("leading", "linspace")


@dataclass(frozen=True)
class UNet2DConfig:
    channels_in: int
    """Channels of the noisy latents and of what is laid beside them: 4, or 8 with a picture."""
    channels_out: int
    widths: tuple[int, ...]
    """Channels of the features at each level, from full resolution down."""
    attention: tuple[bool, ...]
    """Whether a level has transformers beside its convolutions."""
    layers: int
    """Layers per level on the way down; one more on the way up."""
    heads: int
    """Of every attention, whatever the width: heads of wider levels are wider."""
    context_width: int
    groups: int
    """Groups of every group normalisation."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention))
        if len(self.widths) != len(self.attention):
            raise InputError(f"unet: widths {self.widths} and attention {self.attention} disagree")
        for width in self.widths:
            if width % self.groups or width % self.heads:
                raise InputError(
                    f"unet: width {width} is not divisible by groups {self.groups} and "
                    f"heads {self.heads}"
                )

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]


@dataclass(frozen=True)
class ScheduleConfig:
    spacing: str
    """Of Euler's timesteps: "leading", where equal parts begin, or "linspace", from end to end."""

    def __post_init__(self):
        checks.one_of("schedule: spacing", self.spacing, SPACINGS)
