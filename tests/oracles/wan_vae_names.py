"""Names of the parameters of Wan's video autoencoders in diffusers, and ours."""

from anyv2v.convert.rename import Rule, prefixed, rules

RESNET = (
    *(Rule(f"norm{i}.gamma", f"norm{i}.weight", squeeze=3) for i in (1, 2)),
    *rules({"conv1": "conv1", "conv2": "conv2"}),
)
SHORTCUT = Rule("conv_shortcut", "shortcut", squeeze=3)
ATTENTION = (
    Rule("norm.gamma", "norm.weight", squeeze=2),
    Rule("to_qkv", "qkv", squeeze=2),
    Rule("proj", "out", squeeze=2),
)
HALF = (
    *rules({"conv_in": "conv_in", "conv_out": "conv_out"}),
    Rule("norm_out.gamma", "norm_out.weight", squeeze=3),
    *prefixed("mid_block.resnets.{}", "mid.res.{}", RESNET),
    *prefixed("mid_block.attentions.0", "mid.attention", ATTENTION),
)
CONVS = (Rule(name, name, squeeze=3) for name in ("quant_conv", "post_quant_conv"))


def resample(ours: str, temporal: bool = True) -> tuple[Rule, ...]:
    """Rules of a downsampler or upsampler, whose name is `ours`."""
    space = {"resample.1": f"{ours}.space.conv"}
    return rules(space | {"time_conv": f"{ours}.time"} if temporal else space)


COMMON = (
    *CONVS,
    *prefixed("encoder", "encoder", HALF),
    *prefixed("decoder", "decoder", HALF),
    *prefixed("decoder.up_blocks.{}.resnets.{}", "decoder.up.{}.res.{}", (*RESNET, SHORTCUT)),
)
WAN_2_2 = (
    *COMMON,
    *prefixed("encoder.down_blocks.{}.resnets.{}", "encoder.down.{}.res.{}", (*RESNET, SHORTCUT)),
    *prefixed("encoder.down_blocks.{}.downsampler", "encoder.down.{}", resample("downsample")),
    *prefixed("decoder.up_blocks.{}.upsampler", "decoder.up.{}", resample("upsample")),
)


def wan_2_1(widths: list[int], layers: int, temporal: list[bool]) -> tuple[Rule, ...]:
    """The rules of 2.1, where the encoder's resnets and downsamplers are in one list.

    widths: relative widths of the levels. layers: resnets in each. temporal: as in our config.
    """
    table = list(COMMON)
    for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        at = level * (layers + 1)
        for j in range(layers):
            ours = f"encoder.down.{level}.res.{j}"
            inner = (*RESNET, SHORTCUT) if j == 0 and before != width else RESNET
            table += prefixed(f"encoder.down_blocks.{at + j}", ours, inner)
        if level < len(widths) - 1:
            theirs = f"encoder.down_blocks.{at + layers}"
            inner = resample("downsample", temporal[level])
            table += prefixed(theirs, f"encoder.down.{level}", inner)
    table += prefixed("decoder.up_blocks.{}.upsamplers.0", "decoder.up.{}", resample("upsample"))
    return tuple(table)
