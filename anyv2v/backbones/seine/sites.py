"""The sites of SEINE's UNet, and the AnyV2V paper's choice of those to inject.

A site is a named layer whose features can be recorded, replayed and injected.
"""

from __future__ import annotations

from torch import nn

STAGES = ("down", "mid", "up")
"""The UNet's parts, in the order of the forward pass; names of sites begin with them."""
LAYER = ("res", "spatial")
"""The blocks of a layer that have sites, in the order of the forward pass."""
ATTENTIONS = ("self", "cross", "temporal")
"""The attentions of a transformer, in the order of the forward pass; names of sites end so."""


def paper_sites(levels: int, layers: int) -> dict[str, list[str]]:
    """Returns the layers that AnyV2V injects, by group (arXiv 2403.14468, section 4).

    The keys are the injection groups: "conv" (the residual feature of one resnet of the second up
    level), "spatial", "temporal" and "cross" (query and key of the self-attentions within a frame,
    of those along the frames, and of the cross-attentions to the text, from the second layer of the
    second up level to the end, as in the original code). The values are site names, such as
    "up.1.res.1".

    levels: number of levels of the UNet, of which all but the deepest have transformers. layers:
    number of layers in each down level; each up level has one more.
    """
    blocks = [
        f"up.{level}.spatial.{layer}.block"
        for level in range(1, levels)
        for layer in range(1 if level == 1 else 0, layers + 1)
    ]
    return {
        "conv": ["up.1.res.1"],
        "spatial": [f"{block}.self" for block in blocks],
        "temporal": [f"{block}.temporal" for block in blocks],
        "cross": [f"{block}.cross" for block in blocks],
    }


def find_sites(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of all sites (layers that call taps), in the order of the forward pass.

    The name of a site is the path of its module in the network. Raises AssertionError if a module
    has another `site`. SEINE has two kinds:

    - `up.1.res.1`: the residual branch of a resnet, after its second convolution;
    - `up.1.spatial.1.block.self`, `.cross`, `.temporal`: query, key and value of the self-attention
      within a frame, of the cross-attention to the text, and of the attention along the frames.
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
    kind, layer = path[0], int(path[1])
    attention = ATTENTIONS.index(path[-1]) if kind != "res" else 0
    return (STAGES.index(stage), level, layer, LAYER.index(kind), attention)
