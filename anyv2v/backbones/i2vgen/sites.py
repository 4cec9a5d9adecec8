"""The places of a network whose features can be recorded, replayed and injected."""

from __future__ import annotations

from torch import nn


def find_sites(network: nn.Module) -> frozenset[str]:
    """The sites of all blocks of a network, each the block's own path in it.

    I2VGen-XL has three kinds:

    - `up.1.res.1`: the residual branch of a resnet, after its second convolution;
    - `up.1.spatial.1.block.self`, `.cross`: query and key within a frame, to the context;
    - `up.1.temporal.1.block.self`, `.self2`: query and key along the frames.
    """
    blocks = network.named_modules()
    sites = {path: site for path, block in blocks if (site := getattr(block, "site", None))}
    if wrong := {path: site for path, site in sites.items() if path != site}:
        raise AssertionError(f"sites that are not called like their modules: {wrong}")
    return frozenset(sites)
