"""The sizes of I2VGen-XL's UNet, as config.json in a weights folder states them."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v.errors import InputError


@dataclass(frozen=True)
class UNetConfig:
    """Section "unet" of a weights folder's config.json.

    Raises InputError if `level_channels` and `attention` differ in length, or a level's channels
    are not divisible by `groups` or are fewer than `head_dim`.
    """

    channels: int
    """Channels of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level (resolution), from full resolution down."""
    attention: tuple[bool, ...]
    """For each level, from full resolution down, whether it has transformers."""
    layers: int
    """Number of layers in each down level; each up level has one more."""
    head_dim: int
    """Length of an attention head's vectors; a level has channels // head_dim heads."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the context vectors that the cross-attentions read."""
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
            if channels % self.groups or channels < self.head_dim:
                raise InputError(
                    f"unet: width {channels} does not fit groups {self.groups} and "
                    f"head_dim {self.head_dim}"
                )

    def heads(self, channels: int) -> int:
        """Returns the number of attention heads at a level whose features have `channels`."""
        return channels // self.head_dim

    @property
    def time_dim(self) -> int:
        """Length of the time embedding: four times the channels of the first level."""
        return 4 * self.level_channels[0]
