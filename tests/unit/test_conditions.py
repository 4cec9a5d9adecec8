"""What branches of I2VGen-XL are conditioned on, and which of it they share."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from anyv2v import Taps
from anyv2v.backbones.base import FirstFrame
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.unet import FIRST_CROSS
from anyv2v.clip.preprocess import preprocess
from anyv2v.runtime.accounting import count
from tests.oracles import golden

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def branch(value):
    """One, whose parts say which it is."""
    number = float(value)
    context = {site: (torch.full((1, 2), number), torch.full((1, 3), -number)) for site in "ab"}
    beside, fps = torch.full((1, 4, 2, 1, 1), number), torch.full((1, 5), 10 * number)
    return Conditions(context, beside, fps, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    "samples, firsts",
    [
        (None, [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 0, 0, 0], [0]),
        ([0, 1, 1, 1], [0, 1]),
        ([0, 0, 1, 1], [0, 2]),
        ([0, 1, 1, 2], [0, 1, 3]),
    ],
)
def test_branches_of_a_sample_share_what_stands_beside_it(samples, firsts):
    stacked = Conditions.stack([branch(i) for i in range(4)], samples)
    for site in "ab":
        key, value = stacked.context[site]
        assert key[:, 0].tolist() == [0, 1, 2, 3] and value[:, 0].tolist() == [0, -1, -2, -3]
        assert (key.shape, value.shape) == ((4, 2), (4, 3))
    assert stacked.latents.shape == (len(firsts), 4, 2, 1, 1)
    assert stacked.latents[:, 0, 0, 0, 0].tolist() == firsts
    assert stacked.fps[:, 0].tolist() == [10 * i for i in firsts]
    own = samples or [0, 1, 2, 3]
    assert stacked.samples.tolist() == own and stacked.samples.dtype == torch.int64
    apart = stacked.one_per_branch()
    assert apart.context is stacked.context and apart.samples.tolist() == [0, 1, 2, 3]
    assert apart.latents[:, 0, 0, 0, 0].tolist() == [firsts[i] for i in own]
    assert apart.fps[:, 0].tolist() == [10 * firsts[i] for i in own]


@pytest.fixture(scope="module")
def one(editor):
    return editor.condition("a robot", PICTURE, frames=2, size=(24, 16))


class Counts(Taps):
    """Looks at how many rows there are, where it is told to."""

    def __init__(self, sites):
        self.sites, self.seen = sites, {}

    def feature(self, site, feature):
        tensors = feature.compute()
        self.seen[site] = {len(x) for x in tensors}
        return tensors


@torch.no_grad()
def test_taps_see_every_branch_where_they_are_called(editor, one):
    """Also where branches of one sample are still equal; and where taps do not say their sites."""
    stacked = type(one).stack([one, one, one], [0, 0, 1])
    x = torch.randn(2, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    sites = editor.backbone.sites
    early = sites[: sites.index(FIRST_CROSS)]
    assert {"down.0.res.0", "transformer_in.block.self"} <= {*early} and len(early) == 4
    # a row for each frame of each branch, or for each branch alone
    every = {site: {3} if "temporal" in site or "cross" in site else {6} for site in sites}
    every |= {site: {3} for site in sites if site.startswith("transformer_in")}
    found = [Counts(None), Counts(frozenset(early)), Counts(frozenset(early[-1:]))]
    results = [editor.backbone.predict(x, 501, stacked, taps) for taps in found]
    assert found[0].seen == every
    assert found[1].seen == {site: every[site] for site in early}
    assert found[2].seen == {early[-1]: every[early[-1]]}
    assert all(torch.equal(y, results[0]) for y in results)
    assert torch.equal(results[0][0], results[0][1])


@torch.no_grad()
def test_branches_together_are_predicted_as_each_alone(editor, one):
    """Of samples with other rates, pictures, timesteps and prompts."""

    def told(prompt, picture, **rate):
        return editor.condition(prompt, picture, frames=2, size=(24, 16), **rate)

    branches = [one, told("a bear", PICTURE), told("sea", 255 - PICTURE, fps=30)]
    x = torch.randn(2, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    t, samples = torch.tensor([501, 21]), [0, 0, 1]
    together = editor.backbone.predict(x, t, type(one).stack(branches, samples))
    for branch, sample, found in zip(branches, samples, together, strict=True):
        alone = editor.backbone.predict(x[sample : sample + 1], int(t[sample]), branch)
        assert golden.relative_error(found[None], alone) < 1e-5


@pytest.fixture
def strided(editor):
    """The modules of the UNet that are given something whose strides are not the plain ones."""
    unet, found = editor.backbone.unet, []
    # the UNet itself, and what makes conditions, are given what the caller has
    inside = {
        module: name for name, module in unet.named_modules() if name not in ("", "conditioning")
    }

    def look(module, given):
        if not all(x.is_contiguous() for x in given if isinstance(x, torch.Tensor)):
            found.append(inside[module])

    hooks = [module.register_forward_pre_hook(look) for module in inside]
    yield found
    for hook in hooks:
        hook.remove()


def other_strides(x):
    return [
        x.to(memory_format=torch.channels_last_3d),
        x.transpose(3, 4).contiguous().transpose(3, 4),
        torch.stack([x, x], -1)[..., 0],
    ]


@torch.no_grad()
def test_strides_of_latents_change_nothing(editor, one, strided):
    """No layer sees them, and a prediction has the plain ones.

    Of one row, whose frames may lie in memory as a batch does; several are copied in any case.
    """
    x = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    plain, other = editor.backbone.predict(x, 501, one), other_strides(x)[0]
    assert other.stride() != x.stride()
    found = editor.backbone.predict(other, 501, one)
    assert torch.equal(found, plain) and found.is_contiguous()
    assert plain.is_contiguous() and not strided


@torch.no_grad()
def test_strides_of_image_latents_change_nothing(editor, strided):
    unet, draw = editor.backbone.unet, torch.Generator().manual_seed(0)
    width = unet.config.context_dim
    text, image = (torch.randn(1, *shape, generator=draw) for shape in ((77, width), (width,)))
    latents, fps = torch.randn(1, 4, 2, 2, 3, generator=draw), torch.tensor([8])
    plain = unet.condition(text, image, latents, fps)
    for other in other_strides(latents):
        found = unet.condition(text, image, other, fps)
        assert torch.equal(found.latents, plain.latents)
        for site, parts in plain.context.items():
            assert all(map(torch.equal, parts, found.context[site]))
    # a stack of convolutions may choose how its own features lie
    inner = tuple(
        f"conditioning.{name}.{i}" for name in ("latents", "latent_tokens") for i in range(1, 6)
    )
    assert not [name for name in strided if name not in inner]


@torch.no_grad()
def test_conditions_without_data_are_shaped_and_cost_as_real_ones(editor, one):
    backbone = editor.backbone
    first = FirstFrame(PICTURE, editor.encode_frames(PICTURE[None]), 24, 2)
    real = count(lambda: backbone.condition("a", first, {"fps": 8})).flops
    blank = []
    assert count(lambda: blank.append(backbone.meta_conditions(2, 2, 3))).flops == real > 0
    for name in ("latents", "fps", "samples"):
        x, y = getattr(blank[0], name), getattr(one, name)
        assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
    shapes = [
        {site: [x.shape for x in parts] for site, parts in c.context.items()} for c in (*blank, one)
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 16


@torch.no_grad()
def test_each_part_of_what_a_branch_is_told_changes_its_conditions(editor, one):
    """The prompt its context; the frame rate its own; the picture both; the length its latents."""

    def told(prompt="a robot", picture=PICTURE, frames=2, **more):
        return editor.condition(prompt, picture, frames, (24, 16), **more)

    def changed(other):
        return {
            "context": any(not torch.equal(x, y) for x, y in zip(*keys(one, other), strict=True)),
            "latents": not torch.equal(one.latents, other.latents),
            "fps": not torch.equal(one.fps, other.fps),
        }

    def keys(*conditions):
        return [[x for parts in c.context.values() for x in parts] for c in conditions]

    for other, parts in (
        (told(), ""),
        (told("a bear"), "context"),
        (told(fps=30), "fps"),
        (told(picture=255 - PICTURE), "context latents"),
        (told(frames=3), "latents"),
        (told(negative=True), "context"),
    ):
        assert {name for name, differs in changed(other).items() if differs} == set(parts.split())


def test_a_picture_is_cropped_for_the_width_of_its_clip(editor, monkeypatch):
    asked, encode = [], type(editor.backbone).encode_image

    def look(self, image, width, black_edge=False):
        asked.append((image.shape, width, black_edge))
        return encode(self, image, width, black_edge)

    monkeypatch.setattr(type(editor.backbone), "encode_image", look)
    large = np.repeat(np.repeat(PICTURE, 2, 0), 2, 1)
    editor.condition("a", large, 2, (24, 16))
    editor.encode_image(large)
    editor.encode_image(large, 40, black_edge=True)
    assert asked == [((32, 48, 3), 24, False), ((32, 48, 3), 48, False), ((32, 48, 3), 40, True)]


@torch.no_grad()
def test_the_towers_are_told_what_the_call_says(editor):
    """The layers that are skipped; the width of the crop, and whether it is the original's."""
    text, vision = editor.backbone.text, editor.backbone.vision
    ids = editor.tokenize("a robot")
    states = [text(ids, skipped) for skipped in range(len(text.layers) + 1)]
    assert not any(torch.equal(x, y) for x, y in pairwise(states))
    for skipped, state in enumerate(states):
        assert torch.equal(editor.encode_text("a robot", skipped), state)
    assert torch.equal(editor.encode_text("a robot"), states[1])

    calls = [(10, True), (10, False), (16, False), (24, False)]
    config = editor.backbone.preprocess
    embeddings = [vision(preprocess(PICTURE, width, config, black)) for width, black in calls]
    assert not any(torch.equal(x, y) for x, y in pairwise(embeddings))
    for call, embedding in zip(calls, embeddings, strict=True):
        assert torch.equal(editor.encode_image(PICTURE, *call), embedding)
    assert torch.equal(editor.encode_image(PICTURE), embeddings[-1])
