"""The sites of I2VGen-XL's UNet, and the AnyV2V paper's choice of those to inject.

A site is a named layer whose features can be recorded, replayed and injected. ConsistI2V's layers
have the same names, so this module serves it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

STAGES = ("transformer_in", "down", "mid", "up")
"""The UNet's parts, in the order of the forward pass; names of sites begin with them."""
LAYER = ("res", "spatial", "temporal")
"""The blocks of a layer that have sites, in the order of the forward pass."""
ATTENTIONS = ("self", "cross", "self2")
"""The attentions of a transformer, in the order of the forward pass; names of sites end with them.
No transformer has all three."""


def paper_sites(attention: Sequence[bool], layers: int) -> dict[str, list[str]]:
    """Returns the layers that AnyV2V injects, by group (arXiv 2403.14468, section 4).

    The keys are the injection groups: "conv" (the residual feature of one resnet of the second up
    level), "spatial" and "temporal" (query and key of the self-attentions within a frame and along
    the frames, from the second layer of the second up level to the end, as in the original code).
    The values are site names, such as "up.1.res.1".

    attention: for each level of the UNet, from full resolution down, whether it has transformers.
    layers: number of layers in each down level; each up level has one more.
    """
    upwards = attention[::-1]
    layers_injected = [
        (level, layer)
        for level in range(1, len(upwards))
        if upwards[level]
        for layer in range(1 if level == 1 else 0, layers + 1)
    ]
    return {
        "conv": ["up.1.res.1"] if len(upwards) > 1 else [],
        "spatial": [f"up.{level}.spatial.{layer}.block.self" for level, layer in layers_injected],
        "temporal": [f"up.{level}.temporal.{layer}.block.self" for level, layer in layers_injected],
    }


def find_sites(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of all sites (layers that call taps), in the order of the forward pass.

    The name of a site is the path of its module in the network. Raises AssertionError if a module
    has another `site`. I2VGen-XL has three kinds:

    - `up.1.res.1`: the residual branch of a resnet, after its second convolution;
    - `up.1.spatial.1.block.self`, `.cross`: query, key and value of the self-attention within a
      frame, and of the cross-attention to the context;
    - `up.1.temporal.1.block.self`, `.self2`: query, key and value along the frames (ConsistI2V's
      second is `.cross`, to the context).
    """
    blocks = network.named_modules()
    sites = {path: site for path, block in blocks if (site := getattr(block, "site", None))}
    if misnamed := {path: site for path, site in sites.items() if path != site}:
        raise AssertionError(f"sites that are not called like their modules: {misnamed}")
    return tuple(sorted(sites, key=_position))


def _position(site: str) -> tuple[int, ...]:
    """Returns the sort key of a site: stage, level, layer, kind of block, kind of attention."""
    stage, *path = site.split(".")
    level = int(path.pop(0)) if path[0].isdecimal() else 0
    if stage == STAGES[0]:
        return (0, ATTENTIONS.index(path[-1]))
    kind, layer = path[0], int(path[1])
    attention = ATTENTIONS.index(path[-1]) if kind != "res" else 0
    return (STAGES.index(stage), level, layer, LAYER.index(kind), attention)
