"""The sizes of an I2VGen-XL network."""

from __future__ import annotations

from dataclasses import dataclass

from anyv2v.errors import InputError


@dataclass(frozen=True)
class UNetConfig:
    channels: int
    """Channels of the latents."""
    widths: tuple[int, ...]
    """Channels of the features at each level, from full resolution down."""
    attention: tuple[bool, ...]
    """Whether a level has transformers beside its convolutions."""
    layers: int
    """Layers per level on the way down; one more on the way up."""
    head_dim: int
    context_width: int
    groups: int
    """Groups of every group normalisation."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention))
        if len(self.widths) != len(self.attention):
            raise InputError(f"unet: widths {self.widths} and attention {self.attention} disagree")
        for width in self.widths:
            if width % self.groups or width < self.head_dim:
                raise InputError(
                    f"unet: width {width} does not fit groups {self.groups} and "
                    f"head_dim {self.head_dim}"
                )

    def heads(self, width: int) -> int:
        return width // self.head_dim

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]
