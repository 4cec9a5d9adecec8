"""The places of a network whose features can be recorded, replayed and injected."""

from __future__ import annotations

from torch import nn

STAGES = ("transformer_in", "down", "mid", "up")
LAYER = ("res", "spatial", "temporal")
ATTENTIONS = ("self", "cross", "self2")


def find_sites(network: nn.Module) -> tuple[str, ...]:
    """The sites of all blocks of a network, in the order of the forward pass.

    Each is the block's own path in the network.

    I2VGen-XL has three kinds:

    - `up.1.res.1`: the residual branch of a resnet, after its second convolution;
    - `up.1.spatial.1.block.self`, `.cross`: query, key and value within a frame, to the context;
    - `up.1.temporal.1.block.self`, `.self2`: query, key and value along the frames.
    """
    blocks = network.named_modules()
    sites = {path: site for path, block in blocks if (site := getattr(block, "site", None))}
    if wrong := {path: site for path, site in sites.items() if path != site}:
        raise AssertionError(f"sites that are not called like their modules: {wrong}")
    return tuple(sorted(sites, key=_place))


def _place(site: str) -> tuple[int, ...]:
    """Sorts as the forward pass runs: stage, level, layer, kind of block, kind of attention."""
    stage, *path = site.split(".")
    level = int(path.pop(0)) if path[0].isdecimal() else 0
    if stage == STAGES[0]:
        return (0, ATTENTIONS.index(path[-1]))
    kind, layer = path[0], int(path[1])
    which = ATTENTIONS.index(path[-1]) if kind != "res" else 0
    return (STAGES.index(stage), level, layer, LAYER.index(kind), which)
