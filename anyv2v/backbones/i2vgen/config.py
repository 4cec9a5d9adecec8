"""The sizes of an I2VGen-XL network."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v.errors import InputError


@dataclass(frozen=True)
class UNetConfig:
    """Section "unet" of config.json. Raises InputError for sizes that do not fit together."""

    channels: int
    """Channels of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level, from full resolution down."""
    attention: tuple[bool, ...]
    """Whether each level has transformers as well as convolutions."""
    layers: int
    """Layers per level on the way down; a level on the way up has one more."""
    head_dim: int
    """Length of the vectors of one attention head; a level has channels / head_dim heads."""
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
            if channels % self.groups or channels < self.head_dim:
                raise InputError(
                    f"unet: width {channels} does not fit groups {self.groups} and "
                    f"head_dim {self.head_dim}"
                )

    def heads(self, channels: int) -> int:
        """Returns the number of attention heads at a level with that many channels."""
        return channels // self.head_dim

    @property
    def time_dim(self) -> int:
        """Length of the time embedding."""
        return 4 * self.level_channels[0]
