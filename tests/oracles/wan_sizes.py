"""Sizes of Wan's transformer: the published one of TI2V-5B, and small ones for tests."""

from dataclasses import replace

from anyv2v.backbones.wan.config import TransformerConfig

TI2V_5B = TransformerConfig(
    in_channels=48,
    out_channels=48,
    dim=3072,
    heads=24,
    ff_dim=14336,
    layers=30,
    text_dim=4096,
    text_tokens=512,
    time_dim=256,
    patch=(1, 2, 2),
    positions=1024,
    eps=1e-6,
    clean_first_frame=True,
)
# heads of 32 turn 12, 10 and 10 of their channels by frame, row and column
TINY = replace(
    TI2V_5B,
    in_channels=8,
    out_channels=8,
    dim=64,
    heads=2,
    ff_dim=96,
    layers=2,
    text_dim=20,
    text_tokens=12,
    time_dim=32,
)
SIZES = {
    "tiny": TINY,
    "one timestep": replace(TINY, clean_first_frame=False),
    # more channels than it predicts, as in the forms that are told the first frame in channels,
    # another patch, and heads of which frames get more than a third
    "odd": replace(
        TINY, in_channels=13, out_channels=7, heads=4, dim=80, patch=(1, 1, 3), eps=1e-3
    ),
    "middle": replace(TINY, dim=256, heads=4, ff_dim=512, layers=6, time_dim=256),
    "full": replace(TI2V_5B, layers=1),
}
