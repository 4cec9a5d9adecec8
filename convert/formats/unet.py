"""Rules and config fields that the UNets of the backbones and Stable Diffusion have in common."""

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
    """Returns the rules that rename the parameters of a transformer with one block.

    second_attention: our name of the block's second attention, such as "cross". squeeze: how many
    trailing axes of length 1 the weights of the checkpoint's proj_in and proj_out have, because
    they are stored as convolutions; 0 by default, for linear layers.
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
    """Returns the rules that rename the parameters of a whole UNet.

    layers: the rules of the layers inside one block of the UNet (diffusers' down_blocks.0, for
    example), without its shortcuts, downsampler and upsampler.
    """
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
    """Returns the values that diffusers' UNet classes assume for fields that config.json lacks.

    dims: "2D" or "3D", the ending of the classes of the UNet's blocks.
    """
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
    """Returns for each level of a UNet, highest resolution first, whether it has transformers.

    dims: "2D" or "3D", the ending of the supported classes of blocks. levels: how many levels there
    should be. Raises InputError if the config has other blocks or another number of them, or if the
    up blocks are not the down blocks in reverse order.
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
