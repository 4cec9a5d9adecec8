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

    "map" (the attention map: query and key) is that of the second half of the blocks. "value",
    "context" and "hidden" (the outputs of the feed-forward networks), which hold what things look
    like, are of the first half. So the edits of the small flow model were best, see
    docs/flow-injection.md; no measurement on Wan itself is published.
    """
    early, late = range(layers // 2), range(layers // 2, layers)
    return {
        "map": [f"block.{i}.self" for i in late],
        "value": [f"block.{i}.self.{VALUE}" for i in early],
        "context": [f"block.{i}.self.{CONTEXT}" for i in early],
        "hidden": [f"block.{i}.ff" for i in early],
    }
