"""The names of Wan's parameters in diffusers, and ours: the tests give both the same weights."""

from collections.abc import Mapping

from torch import Tensor, nn

from anyv2v.convert.rename import Rule, prefixed, rename, rules

ATTENTION = rules(
    {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "out",
        "norm_q": "norm_q",
        "norm_k": "norm_k",
    }
)
BLOCK = (
    *prefixed("attn1", "self", ATTENTION),
    *prefixed("attn2", "cross", ATTENTION),
    *rules(
        {
            "scale_shift_table": "modulation",
            "norm2": "norm_cross",
            "ffn.net.0.proj": "ff.up",
            "ffn.net.2": "ff.down",
        }
    ),
)
TRANSFORMER = (
    *prefixed("blocks.{}", "block.{}", BLOCK),
    *rules(
        {
            "patch_embedding": "patch",
            "condition_embedder.time_embedder.linear_1": "time.0",
            "condition_embedder.time_embedder.linear_2": "time.2",
            "condition_embedder.time_proj": "time_projection",
            "condition_embedder.text_embedder.linear_1": "text.0",
            "condition_embedder.text_embedder.linear_2": "text.2",
            "scale_shift_table": "modulation",
            "proj_out": "out",
        }
    ),
)
"""`WanTransformer3DModel`; all shapes are the same."""

ORIGINAL_ATTENTION = rules(
    {"q": "q", "k": "k", "v": "v", "o": "out", "norm_q": "norm_q", "norm_k": "norm_k"}
)
ORIGINAL_TRANSFORMER = (
    *prefixed("blocks.{}.self_attn", "block.{}.self", ORIGINAL_ATTENTION),
    *prefixed("blocks.{}.cross_attn", "block.{}.cross", ORIGINAL_ATTENTION),
    *rules(
        {
            "blocks.{}.modulation": "block.{}.modulation",
            "blocks.{}.norm3": "block.{}.norm_cross",
            "blocks.{}.ffn.0": "block.{}.ff.up",
            "blocks.{}.ffn.2": "block.{}.ff.down",
            "patch_embedding": "patch",
            "time_embedding.0": "time.0",
            "time_embedding.2": "time.2",
            "time_projection.1": "time_projection",
            "text_embedding.0": "text.0",
            "text_embedding.2": "text.2",
            "head.modulation": "modulation",
            "head.head": "out",
        }
    ),
)
"""The same in the files of https://github.com/Wan-Video/Wan2.2; all shapes are the same."""


def renamed(state: Mapping[str, Tensor], table: tuple[Rule, ...]) -> dict[str, Tensor]:
    """The same tensors by our names; raises InputError unless each has one rule and one name."""
    return {new.name: state[old] for old, new in rename(state, table).items()}


def share(theirs: nn.Module, ours: nn.Module, table: tuple[Rule, ...]) -> None:
    """Gives `ours`, which may be on the meta device, the weights of `theirs`, all and no others."""
    state, shapes = renamed(theirs.state_dict(), table), ours.state_dict()
    for name, x in state.items():
        assert x.shape == shapes[name].shape, f"{name}: {x.shape} is not {shapes[name].shape}"
    ours.load_state_dict(state, strict=True, assign=True)
    ours.eval().requires_grad_(False)
