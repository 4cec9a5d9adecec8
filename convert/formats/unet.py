"""The names and config fields that the UNets of I2VGen-XL and Stable Diffusion have in common."""

from collections.abc import Iterable

from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.rename import Rule, prefixed, rules

ATTENTION = rules({"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"})
FEED_FORWARD = rules({"ff.net.0.proj": "ff.up", "ff.net.2": "ff.down"})
RESNET = rules(
    {
        "norm1": "norm1",
        "conv1": "conv1",
        "time_emb_proj": "time",
        "norm2": "norm2",
        "conv2": "conv2",
    }
)
SHORTCUT = (Rule("resnets.{}.conv_shortcut", "res.{}.shortcut"),)


def transformer(second_attention: str, squeeze: int = 0) -> tuple[Rule, ...]:
    """Return the rules of a transformer with one block.

    second_attention: our name of the block's second attention. squeeze: how many trailing axes of
    length 1 the checkpoint's projections have, because they are stored as convolutions there.
    """
    return (
        Rule("norm", "norm"),
        Rule("proj_in", "proj_in", squeeze),
        Rule("proj_out", "proj_out", squeeze),
        *prefixed(
            "transformer_blocks.0",
            "block",
            (
                *rules({"norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}),
                *prefixed("attn1", "self", ATTENTION),
                *prefixed("attn2", second_attention, ATTENTION),
                *FEED_FORWARD,
            ),
        ),
    )


def unet(layers: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules of a whole UNet whose levels are made of `layers`."""
    layers = tuple(layers)
    return (
        *rules(
            {
                "conv_in": "conv_in",
                "conv_norm_out": "norm_out",
                "conv_out": "conv_out",
                "time_embedding.linear_1": "time_embedding.0",
                "time_embedding.linear_2": "time_embedding.2",
            }
        ),
        *prefixed("down_blocks.{}", "down.{}", (*layers, *SHORTCUT)),
        Rule("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample.conv"),
        *prefixed("mid_block", "mid", layers),
        *prefixed("up_blocks.{}", "up.{}", (*layers, *SHORTCUT)),
        Rule("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
    )


def config_defaults(dims: str) -> dict:
    """Return what diffusers' UNet classes take for absent fields; dims is "2D" or "3D"."""
    return {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [f"CrossAttnDownBlock{dims}"] * 3 + [f"DownBlock{dims}"],
        "up_block_types": [f"UpBlock{dims}"] + [f"CrossAttnUpBlock{dims}"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }


def attention_levels(config: HFConfig, dims: str, levels: int) -> list[bool]:
    """Read which levels have transformers, from the highest resolution to the lowest.

    dims: "2D" or "3D". Raises InputError for other blocks, and for a way up that is not the mirror
    image of the way down.
    """

    def read(name: str, types: dict[str, bool]) -> list[bool]:
        value = config[name]
        if not isinstance(value, list | tuple) or not all(
            isinstance(block, str) and block in types for block in value
        ):
            raise config.error(name, f"blocks are {' or '.join(types)}")
        if len(value) != levels:
            raise config.error(name, f"one block per width is needed, that is {levels}")
        return [types[block] for block in value]

    down = read("down_block_types", {f"CrossAttnDownBlock{dims}": True, f"DownBlock{dims}": False})
    up = read("up_block_types", {f"CrossAttnUpBlock{dims}": True, f"UpBlock{dims}": False})
    if up != down[::-1]:
        raise config.error("up_block_types", "it must mirror down_block_types")
    return down
