"""The sizes of SEINE's UNet, as config.json in a weights folder states them."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v.errors import InputError

ROTATED_PAIRS = 16
"""How many pairs of channels of every temporal attention head are rotated by the frame's index."""


@dataclass(frozen=True)
class UNetConfig:
    """Section "unet" of a weights folder's config.json.

    All levels but the deepest have transformers. Raises InputError if there are fewer than two
    levels, if `level_channels` and `heads` differ in length, if a level's channels are not
    divisible by `groups` and its heads, or if its heads have fewer channels than are rotated.
    """

    channels: int
    """Channels of the latents; the network's input has twice as many, and one more for the mask."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level (resolution), from full resolution down."""
    heads: tuple[int, ...]
    """Number of heads of every attention at each level."""
    layers: int
    """Number of layers in each down level; each up level has one more."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the context vectors that the cross-attentions read."""
    groups: int
    """Number of channel groups in every group normalization."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        object.__setattr__(self, "heads", tuple(self.heads))
        if len(self.level_channels) < 2 or len(self.level_channels) != len(self.heads):
            raise InputError(
                f"unet: widths {self.level_channels} and heads {self.heads} are not two lists of "
                "one length from 2"
            )
        for channels, heads in zip(self.level_channels, self.heads, strict=True):
            if channels % self.groups or channels % heads:
                raise InputError(
                    f"unet: width {channels} is not a multiple of groups {self.groups} and "
                    f"heads {heads}"
                )
            if channels // heads < 2 * ROTATED_PAIRS:
                raise InputError(
                    f"unet: width {channels} of {heads} heads gives each {channels // heads} "
                    f"channels; at least {2 * ROTATED_PAIRS} are needed"
                )

    @property
    def attention(self) -> tuple[bool, ...]:
        """For each level, from full resolution down, whether it has transformers."""
        return (True,) * (len(self.level_channels) - 1) + (False,)

    @property
    def time_dim(self) -> int:
        """Length of the time embedding: four times the channels of the first level."""
        return 4 * self.level_channels[0]
