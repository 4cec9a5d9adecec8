"""The numbers of channels between the layers of a UNet."""

from __future__ import annotations

from collections.abc import Sequence


def layer_inputs(
    level_channels: Sequence[int], layers: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the input channels of every layer of a UNet, for the down levels and the up levels.

    Each of the two lists has one list per level, in the order of the forward pass, with one number
    per layer. level_channels: output channels of each level, from full resolution down. layers:
    number of layers in each down level.

    Each up level has one layer more, and each of its layers reads the previous layer's output
    concatenated with a skip feature. The skip features are the outputs of the first convolution, of
    all layers on the way down and of the downsamplers, taken last in, first out.
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
