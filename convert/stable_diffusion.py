"""Stable Diffusion 1.x: its UNet's names and config, and its schedule."""

from anyv2v.convert.rename import Rule, rules, under

ATTENTION = rules({"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"})
TRANSFORMER = (
    Rule("norm", "norm"),
    # 1x1 convolutions in the checkpoint, matrices here
    Rule("proj_in", "proj_in", squeeze=2),
    Rule("proj_out", "proj_out", squeeze=2),
    *under(
        "transformer_blocks.0",
        "block",
        (
            *rules({"norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}),
            *under("attn1", "self", ATTENTION),
            *under("attn2", "cross", ATTENTION),
            *rules({"ff.net.0.proj": "ff.up", "ff.net.2": "ff.down"}),
        ),
    ),
)
RESNET = rules(
    {
        "norm1": "norm1",
        "conv1": "conv1",
        "time_emb_proj": "time",
        "norm2": "norm2",
        "conv2": "conv2",
    }
)
SHORTCUT = rules({"conv_shortcut": "shortcut"})
LAYERS = (
    *under("resnets.{}", "res.{}", RESNET),
    *under("attentions.{}", "spatial.{}", TRANSFORMER),
)
CHANGING_WIDTH = under("resnets.{}", "res.{}", SHORTCUT)

UNET = (
    *rules(
        {
            "conv_in": "conv_in",
            "conv_norm_out": "norm_out",
            "conv_out": "conv_out",
            "time_embedding.linear_1": "time_embedding.0",
            "time_embedding.linear_2": "time_embedding.2",
        }
    ),
    *under("down_blocks.{}", "down.{}", (*LAYERS, *CHANGING_WIDTH)),
    Rule("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample.conv"),
    *under("mid_block", "mid", LAYERS),
    *under("up_blocks.{}", "up.{}", (*LAYERS, *CHANGING_WIDTH)),
    Rule("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
)
