"""The channels that flow through the levels of a UNet."""

from __future__ import annotations

from collections.abc import Sequence


def layer_inputs(
    level_channels: Sequence[int], layers: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Counts the input channels of every layer of a UNet, level by level: on the way down, and up.

    level_channels: channels of each level from full resolution down. layers: layers per level on
    the way down; on the way up each level has one more, and every layer reads the output of the one
    before it concatenated with a skip. The skips are the outputs of the first convolution, of all
    layers on the way down, and of the downsamplers, taken last in, first out.
    """
    channels, skips, down, up = level_channels[0], [level_channels[0]], [], []
    for i, out_channels in enumerate(level_channels):
        down.append([channels] + [out_channels] * (layers - 1))
        channels = out_channels
        last = i == len(level_channels) - 1
        skips += [channels] * (layers if last else layers + 1)
    for out_channels in reversed(level_channels):
        up.append([c + skips.pop() for c in [channels] + [out_channels] * layers])
        channels = out_channels
    return down, up
