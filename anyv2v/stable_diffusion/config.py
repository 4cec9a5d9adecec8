"""The sizes of a Stable Diffusion network, and its noise schedule."""

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
    """Of the noise that the network was trained on, and of the timesteps at which it is asked."""

    train_steps: int
    beta_start: float
    beta_end: float
    """Betas run between the two, linear in their square roots."""
    steps_offset: int
    """The least noisy timestep of a run with leading spacing."""
    spacing: str
    """Of Euler's steps: "leading", the first of equal parts; "linspace", from end to end."""

    def __post_init__(self):
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"schedule: betas {self.beta_start} to {self.beta_end}: not in 0..1")
        checks.one_of("schedule: spacing", self.spacing, SPACINGS)
