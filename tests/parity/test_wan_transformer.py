"""Wan's transformer against diffusers, live, on random weights in float32."""

from dataclasses import replace

import pytest
import torch

from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.convert.rename import rename, unused_rules
from tests.draw import normal, redraw
from tests.oracles import wan_names
from tests.oracles.golden import relative_error

diffusers = pytest.importorskip("diffusers")
processors = pytest.importorskip("diffusers.models.transformers.transformer_wan")

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


def oracle(config):
    return diffusers.WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.time_dim,
        ffn_dim=config.ff_dim,
        num_layers=config.layers,
        eps=config.eps,
        rope_max_seq_len=config.positions,
    )


def pair(config):
    """Their transformer with random weights, and ours on the same tensors."""
    theirs = redraw(oracle(config), seed=1)
    with torch.device("meta"):
        ours = Transformer(config)
    wan_names.share(theirs, ours, wan_names.TRANSFORMER)
    return theirs, ours


def predicted(theirs, config, latents, t, text):
    """Their prediction, whose timesteps are those of TI2V: one for each token."""
    if config.clean_first_frame:
        area = latents[0, 0, 0].numel() // (config.patch[1] * config.patch[2])
        tokens = torch.ones(len(latents), latents.shape[2], area)
        tokens[:, 0] = 0
        t = tokens.flatten(1) * t[:, None]
    # the embedding of prompts that their pipeline makes
    text = torch.cat(
        [text, text.new_zeros(len(text), config.text_tokens - text.shape[1], text.shape[2])], 1
    )
    return theirs(latents, t, text).sample


def inputs(config, batch=2):
    height, width = 4 * config.patch[1], 3 * config.patch[2]
    latents = normal(batch, config.in_channels, 3, height, width)
    return latents, torch.tensor([937, 12.0])[:batch], normal(batch, 5, config.text_dim, seed=1)


@pytest.fixture(scope="module")
def tiny():
    return pair(TINY)


def test_names_and_shapes_of_the_published_size():
    """Every tensor has one rule, in both directions, and no rule is unused."""
    with torch.device("meta"):
        theirs, ours = oracle(TI2V_5B), Transformer(TI2V_5B)
    shapes = {name: x.shape for name, x in theirs.state_dict().items()}
    table = wan_names.TRANSFORMER
    assert wan_names.renamed(shapes, table) == {k: x.shape for k, x in ours.state_dict().items()}
    back = rename(ours.state_dict(), table, to="theirs")
    assert {new.name for new in back.values()} == shapes.keys()
    assert not unused_rules(shapes, table)
    assert len(shapes) == 825
    assert sum(x.numel() for x in ours.parameters()) == 4_999_787_712


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["tiny", "one timestep", "odd", "middle", pytest.param("full", marks=pytest.mark.slow)]
)
def test_transformer(name):
    config = SIZES[name]
    theirs, ours = pair(config)
    latents, t, text = inputs(config)
    seen = {"theirs": [], "ours": []}
    for block in theirs.blocks:
        block.register_forward_hook(lambda *given: seen["theirs"].append(given[-1]))
    for block in ours.block:
        block.register_forward_hook(lambda *given: seen["ours"].append(given[-1].flatten(1, 3)))
    truth = predicted(theirs, config, latents, t, text)
    found = ours(latents, t, ours.condition(text))
    blocks = zip(seen["ours"], seen["theirs"], strict=True)
    errors = [*(relative_error(*both) for both in blocks), relative_error(found, truth)]
    print(f"{name}: {' '.join(f'{error:.1e}' for error in errors)}")
    assert len(errors) == config.layers + 1
    assert max(errors) <= 5e-6
