"""The sizes of ConsistI2V's UNet, as config.json in a weights folder states them."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyv2v.errors import InputError

CONV_GROUPS = 32
"""Number of channel groups in the norms of the temporal convolutions, whatever `groups` is."""


@dataclass(frozen=True)
class UNetConfig:
    """Section "unet" of a weights folder's config.json.

    Raises InputError if `level_channels`, `attention` and `spatial_heads` differ in length, or a
    level's channels are not divisible by `groups`, by 32 and by its numbers of heads.
    """

    channels: int
    """Channels of the latents."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the features at each level (resolution), from full resolution down."""
    attention: tuple[bool, ...]
    """For each level, from full resolution down, whether it has transformers."""
    layers: int
    """Number of layers in each down level; each up level has one more."""
    spatial_heads: tuple[int, ...]
    """For each level, from full resolution down, the number of heads of attentions in a frame."""
    temporal_heads: int
    """Number of heads of the attentions along the frames, at every level."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the context vectors that the cross-attentions read."""
    groups: int
    """Number of channel groups in the norms of resnets and transformers, and in the last norm."""

    def __post_init__(self):
        for name in ("level_channels", "attention", "spatial_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lists = self.level_channels, self.attention, self.spatial_heads
        if len({len(x) for x in lists}) > 1:
            raise InputError(
                "unet: widths {}, attention {} and spatial_heads {} disagree".format(*lists)
            )
        for channels, heads in zip(self.level_channels, self.spatial_heads, strict=True):
            divisors = {
                "groups": self.groups,
                "the groups of temporal convolutions": CONV_GROUPS,
                "spatial_heads": heads,
                "temporal_heads": self.temporal_heads,
            }
            for name, divisor in divisors.items():
                if channels % divisor:
                    raise InputError(
                        f"unet: width {channels} is not divisible by {name}, {divisor}"
                    )

    @property
    def time_dim(self) -> int:
        """Length of the time embedding: four times the channels of the first level."""
        return 4 * self.level_channels[0]
