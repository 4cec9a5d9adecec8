"""The sites of Wan's transformer, and the choice of those to inject.

A site is a named place of the network whose features can be recorded, replayed and injected. Block
3, for example, has these, in the order of the forward pass:

- `block.3.self`: query and key of the self-attention, normalized and rotated;
- `block.3.self.value`: its value, (g, f h w, heads, d) for g branches;
- `block.3.self.context`: its result before the output projection, of the same shape. Injected, the
  edit's tokens attend to the source's tokens, too: the source's keys and values are concatenated to
  their own;
- `block.3.cross`: query and key of the cross-attention, whose key and value are the text's;
- `block.3.ff`: the output of the feed-forward network, (g, f, h, w, c), before the block's gate.

The attentions call the hooks `qk`, `qkv` and `output` of taps, the other sites `hidden`.
"""

from __future__ import annotations

VALUE, CONTEXT = "value", "context"
"""What the names of a self-attention's further sites end with."""


def chosen_sites(layers: int) -> dict[str, list[str]]:
    """Returns the injection groups of a transformer with so many blocks: group -> names of sites.

    "map" (the attention map: query and key), "value" and "context" are the self-attentions of all
    blocks but those of the first third; "hidden" is the feed-forward network of the middle block,
    in the role of AnyV2V's residual feature. No measurement on Wan is published.
    """
    blocks = range(layers // 3, layers)
    return {
        "map": [f"block.{i}.self" for i in blocks],
        "value": [f"block.{i}.self.{VALUE}" for i in blocks],
        "context": [f"block.{i}.self.{CONTEXT}" for i in blocks],
        "hidden": [f"block.{layers // 2}.ff"],
    }
