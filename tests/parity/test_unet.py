"""The UNet against diffusers' on random configurations, plain and with features injected."""

import pytest
import torch

from anyv2v import ShareSource
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.convert.formats.i2vgen import UNET
from anyv2v.convert.rename import rename
from tests.oracles import golden

diffusers = pytest.importorskip("diffusers")

# widths, heads' width, context, groups, (frames, h, w)
CONFIGS = [
    pytest.param((8, 16, 24, 24), 8, 20, 4, (3, 8, 8), id="narrow"),
    pytest.param((30, 20, 40, 50), 10, 28, 5, (5, 5, 7), id="odd latents"),
    pytest.param((16, 48, 32, 64), 16, 12, 16, (1, 9, 4), id="one frame"),
]


def both(widths, head_dim, context, groups):
    """The same random weights in both networks; every tensor drawn, none left at zero."""
    theirs = diffusers.I2VGenXLUNet(
        block_out_channels=widths,
        attention_head_dim=head_dim,
        cross_attention_dim=context,
        norm_num_groups=groups,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    state = theirs.state_dict()
    for x in state.values():
        deviation = 0.3 if x.ndim == 1 else (0.8 / x[0].numel()) ** 0.5
        x.normal_(0, deviation, generator=generator)
    ours = UNet(UNetConfig(4, widths, (True, True, True, False), 2, head_dim, context, groups))
    shapes = ours.state_dict()
    named = rename(state, UNET)
    ours.load_state_dict(
        {new.name: state[old].reshape(shapes[new.name].shape) for old, new in named.items()}
    )
    return ours.eval(), theirs


def inputs(rows, context, frames, h, w):
    g = torch.Generator().manual_seed(1)
    x, image = (torch.randn(rows, 4, frames, h, w, generator=g) for _ in range(2))
    text, embedding = (
        torch.randn(rows, 77, context, generator=g),
        torch.randn(rows, context, generator=g),
    )
    return x, image, text, embedding, torch.arange(rows) * 7 + 1


@pytest.mark.parametrize("widths, head_dim, context, groups, shape", CONFIGS)
@torch.no_grad()
def test_forward_equals_diffusers(widths, head_dim, context, groups, shape):
    ours, theirs = both(widths, head_dim, context, groups)
    x, image, text, embedding, fps = inputs(2, context, *shape)
    t = torch.tensor([321, 321])
    truth = theirs(x, t, fps, image, embedding[:, None], encoder_hidden_states=text).sample
    out = ours(x, t, ours.condition(text, embedding, image, fps))
    assert golden.relative_error(out, truth) <= 1e-5


class GiveSource:
    """An attention processor of diffusers' that lets all branches use the first one's q and k."""

    def __init__(self, branches):
        self.branches = branches

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k = attn.to_q(hidden_states), attn.to_k(hidden_states)
        v = attn.to_v(hidden_states)
        rows = len(q) // self.branches
        q, k = (x[:rows].repeat(self.branches, 1, 1) for x in (q, k))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def inject_into_theirs(unet, branches):
    """The original's injection, written out again on diffusers' modules by hooks."""
    places = [(1, 1), (1, 2), *((level, layer) for level in (2, 3) for layer in range(3))]
    for level, layer in places:
        block = unet.up_blocks[level]
        for attention in (block.attentions[layer], block.temp_attentions[layer]):
            attention.transformer_blocks[0].attn1.processor = GiveSource(branches)

    def share(module, args, out):
        return out[: len(out) // branches].repeat(branches, 1, 1, 1)

    unet.up_blocks[1].resnets[1].conv2.register_forward_hook(share)


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("widths, head_dim, context, groups, shape", CONFIGS)
@torch.no_grad()
def test_injection_equals_hooks_on_diffusers(widths, head_dim, context, groups, shape, branches):
    ours, theirs = both(widths, head_dim, context, groups)
    x, image, text, embedding, fps = inputs(branches, context, *shape)
    t = torch.tensor([901] * branches)
    inject_into_theirs(theirs, branches)
    truth = theirs(x, t, fps, image, embedding[:, None], encoder_hidden_states=text).sample
    kinds = ("spatial", "temporal")
    places = [(1, 1), (1, 2), *((level, layer) for level in (2, 3) for layer in range(3))]
    sites = {f"up.{i}.{kind}.{j}.block.self" for i, j in places for kind in kinds}
    taps = ShareSource(sites | {"up.1.res.1"}, branches)
    conditions = ours.condition(text, embedding, image, fps)
    out = ours(x, t, conditions, taps)
    assert golden.relative_error(out, truth) <= 1e-5
    assert golden.relative_error(ours(x, t, conditions), truth) > 1e-4
