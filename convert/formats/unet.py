"""Names of what the UNets of I2VGen-XL and of Stable Diffusion have in common."""

from collections.abc import Iterable

from anyv2v.convert.rename import Rule, rules, under

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
CHANGING_WIDTH = (Rule("resnets.{}.conv_shortcut", "res.{}.shortcut"),)


def transformer(second_attention: str, squeeze: int = 0) -> tuple[Rule, ...]:
    """squeeze: axes of its projections that are 1 in the checkpoint, as those of convolutions."""
    return (
        Rule("norm", "norm"),
        Rule("proj_in", "proj_in", squeeze),
        Rule("proj_out", "proj_out", squeeze),
        *under(
            "transformer_blocks.0",
            "block",
            (
                *rules({"norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}),
                *under("attn1", "self", ATTENTION),
                *under("attn2", second_attention, ATTENTION),
                *FEED_FORWARD,
            ),
        ),
    )


def unet(layers: Iterable[Rule]) -> tuple[Rule, ...]:
    """Of a whole UNet with such layers at every level."""
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
        *under("down_blocks.{}", "down.{}", (*layers, *CHANGING_WIDTH)),
        Rule("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample.conv"),
        *under("mid_block", "mid", layers),
        *under("up_blocks.{}", "up.{}", (*layers, *CHANGING_WIDTH)),
        Rule("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
    )
