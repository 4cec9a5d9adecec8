"""ConsistI2V beyond the goldens: other sizes, branches, options, injection, memory."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import anyv2v
from anyv2v import InputError, Record, Replay, ShareSource, Taps
from anyv2v.backbones.base import FirstFrame
from anyv2v.backbones.consisti2v.conditioning import Conditions
from anyv2v.backbones.consisti2v.config import UNetConfig
from anyv2v.backbones.consisti2v.unet import UNet
from anyv2v.injection.taps import Chain
from anyv2v.nn.resnet import GroupNorm
from anyv2v.nn.transformer import AddNorm, LayerNorm
from anyv2v.runtime.accounting import count, fake_mode
from anyv2v.runtime.meta import meta_copy
from tests.draw import normal
from tests.oracles import consisti2v_unet, golden

SIZES = {
    "channels": 4,
    "level_channels": (32, 64),
    "attention": (True, False),
    "layers": 1,
    "spatial_heads": (2, 4),
    "temporal_heads": 4,
    "context_dim": 16,
    "groups": 8,
}
SLOW = pytest.mark.slow
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
"""5 by 9 latents: fewer would leave norms of the deepest level next to no values."""


@pytest.fixture(scope="module")
def unet(consisti2v):
    return consisti2v.backbone.unet


@pytest.fixture(scope="module")
def clip():
    frames = np.random.default_rng(1).integers(0, 256, (2, 40, 72, 3), np.uint8)
    return anyv2v.Video(frames, 8)


@pytest.fixture(scope="module")
def source(consisti2v, clip):
    return consisti2v.invert(clip, "ddim", 2)


def options(**given):
    return {"frame_stride": 3, "source_frame": "own", **given}


@pytest.mark.parametrize("frames, height, width", [(3, 6, 10), pytest.param(7, 5, 9, marks=SLOW)])
@torch.no_grad()
def test_any_size_and_any_number_of_frames(consisti2v_snapshot_folder, unet, frames, height, width):
    """Sizes that are rounded up going down, and no 5 frames, the number in the config."""
    file = consisti2v_snapshot_folder / "unet/diffusion_pytorch_model.safetensors"
    state = {name: x.double() for name, x in load_file(file).items()}
    cfg = json.loads((consisti2v_snapshot_folder / "unet/config.json").read_text())
    x, text = normal(4, frames, height, width), normal(9, cfg["cross_attention_dim"], seed=1)
    truth = consisti2v_unet.predict(state, cfg, x.double(), 301, 2, text.double())
    conditions = unet.condition(text[None], torch.tensor([2]))
    ours = unet(x[None], torch.tensor([301]), conditions)[0]
    assert golden.relative_error(ours, truth) <= 1e-5


@torch.no_grad()
def test_a_batch_of_videos_equals_each_alone(unet):
    """Two samples, of which the first has two branches, with strides and timesteps of their own."""
    x, t = normal(2, 4, 2, 5, 9), torch.tensor([301, 701])
    each = [
        unet.condition(normal(1, 9, 32, seed=seed), torch.tensor([stride]))
        for seed, stride in ((2, 1), (3, 1), (4, 5))
    ]
    each[1] = each[1].with_first(normal(1, 4, 1, 5, 9, seed=5))
    samples = [0, 0, 1]
    before = x.clone()
    together = unet(x, t, Conditions.stack(each, samples))
    assert torch.equal(x, before)
    for i, sample in enumerate(samples):
        alone = unet(x[sample : sample + 1], t[sample : sample + 1], each[i])
        assert golden.relative_error(together[i : i + 1], alone) <= 1e-5
    # and the replaced first frame is what makes the second branch
    x[0, :, :1] = each[1].first[0][0]
    plain = replace(each[1], first={})
    assert golden.relative_error(together[1:2], unet(x[:1], t[:1], plain)) <= 1e-5


@pytest.mark.parametrize(
    "text, image, count", [(1, 1, 1), (7, 1, 2), pytest.param(0.5, 2, 3, marks=SLOW), (7, 2, 3)]
)
@torch.no_grad()
def test_guidance(consisti2v, text, image, count):
    """The table of branches, against single passes and the sum written out."""
    backbone, guidance = consisti2v.backbone, {"text": text, "image": image}
    latents, begin = normal(1, 4, 2, 5, 9), normal(1, 4, 2, 5, 9, seed=1)
    first = FirstFrame(PICTURE, latents[:, :, :1], 72, 2, begin)
    branches = backbone.branches("a robot", "ugly", first, guidance, options())
    assert backbone.branch_count(guidance) == len(branches.conditions) == count
    level = backbone.schedule.levels(4)[1]
    each = [backbone.predict(latents, level.t, c) for c in branches.conditions]

    def alone(prompt, frame):
        x = torch.cat([frame, latents[:, :, 1:]], dim=2)
        return backbone.predict(x, level.t, backbone.condition(prompt, first, options()))

    truth = both = alone("a robot", latents[:, :, :1])
    if count > 1:
        unwanted = alone("ugly", latents[:, :, :1])
        truth = unwanted + text * (both - unwanted)
    if count > 2:
        noise = alone("ugly", begin[:, :, :1])
        truth = noise + image * (unwanted - noise) + text * (both - unwanted)
    assert golden.relative_error(branches.combine(level, tuple(each)), truth) <= 1e-5


@torch.no_grad()
def test_image_guidance_without_latents_to_begin_with(consisti2v):
    """As in an inversion: then the branch without the image sees the first frame as well."""
    latents, guidance = normal(1, 4, 2, 5, 9), {"text": 7, "image": 2}
    first = FirstFrame(PICTURE, latents[:, :, :1], 72, 2)
    noise, image, _ = consisti2v.backbone.branches(
        "a robot", "ugly", first, guidance, options()
    ).conditions
    each = [consisti2v.backbone.predict(latents, 301, c) for c in (noise, image)]
    assert torch.equal(*each)


@torch.no_grad()
def test_an_edit_with_image_guidance(consisti2v, clip, source):
    """Against DDIM's closed form: its first branch sees frame 0 of the latents it began with."""
    backbone, frame, schedule = consisti2v.backbone, PICTURE, consisti2v.backbone.schedule
    edit = consisti2v.edit(
        source,
        frame,
        "a robot",
        negative_prompt="ugly",
        steps=2,
        guidance={"text": 3, "image": 2},
        injection=anyv2v.Injection(conv=0, spatial=0, temporal=0),
        start=0,
        random_ratio=0.25,
        noise=normal(1, 4, 2, 5, 9, seed=3),
    )
    begin = 0.25 * normal(1, 4, 2, 5, 9, seed=3) + 0.75 * source.at(0)
    clean, x = consisti2v.encode_frames(frame[None]), begin[:, :, 1:]
    first = FirstFrame(frame, clean, 72, 2)

    def predict(prompt, frame_0):
        latents = torch.cat([frame_0, x], dim=2)
        condition = backbone.condition(prompt, first, options())
        return backbone.predict(latents, t, condition)[:, :, 1:]

    for t in (501, 1):
        a, b = schedule.alpha_bar(t), schedule.alpha_bar(t - 500)
        noise, image = predict("ugly", begin[:, :, :1]), predict("ugly", clean)
        eps = noise + 2 * (image - noise) + 3 * (predict("a robot", clean) - image)
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    assert golden.relative_error(edit.latents, torch.cat([clean, x], dim=2)) <= 1e-4


def test_the_source_branch_sees_its_own_first_frame_unless_it_is_told_otherwise(consisti2v, source):
    def edit(injected, **given):
        injection = anyv2v.Injection(conv=injected, spatial=injected, temporal=injected)
        settings = dict(steps=2, start=0, guidance=1.0, injection=injection, options=given)
        return consisti2v.edit(source, PICTURE, "a robot", **settings).latents

    assert golden.relative_error(edit(1.0, source_frame="edited"), edit(1.0)) > 1e-2
    # a source that is not injected does not matter, and nor does what it sees
    assert torch.equal(edit(0.0), edit(0.0, source_frame="edited"))


def test_the_source_s_own_frame_as_the_edited_one(consisti2v, source):
    """Then both source branches see the same."""
    frame, settings = source.video.frames[0], dict(steps=1, start=0, guidance=1.0)
    own, edited = (
        consisti2v.edit(source, frame, "", options={"source_frame": seen}, **settings).latents
        for seen in ("own", "edited")
    )
    assert golden.relative_error(edited, own) <= 1e-5


class ByHand(Taps):
    """The source's features in place of each branch's own, as plain hooks."""

    def __init__(self, sites, branches):
        self.sites, self.branches = frozenset(sites), branches

    def hidden(self, site, h):
        return self.source(h)

    def qk(self, site, q, k):
        return self.source(q), self.source(k)


@pytest.mark.parametrize(
    "group, branches",
    [
        ("all", 3),
        *(
            pytest.param(group, branches, marks=SLOW)
            for group in ("conv", "spatial", "temporal", "cross", "all")
            for branches in (2, 3, 5)
            if (group, branches) != ("all", 3)
        ),
    ],
)
@torch.no_grad()
def test_replayed_and_shared_sources_equal_plain_hooks(consisti2v, unet, group, branches):
    """With one, two and four branches beside the source, of which one sees another first frame."""
    groups = {**consisti2v.backbone.groups, "cross": {x for x in unet.sites if "up.3" in x}}
    groups["cross"] = {x for x in groups["cross"] if x.endswith("cross")}
    sites = frozenset().union(*(groups.values() if group == "all" else [groups[group]]))
    x, t = normal(branches, 4, 2, 5, 9), torch.tensor([301]).expand(branches)
    each = [unet.condition(normal(1, 5, 32, seed=i), torch.tensor([3])) for i in range(branches)]
    each[1] = each[1].with_first(normal(1, 4, 1, 5, 9, seed=9))
    stacked, others = Conditions.stack(each), Conditions.stack(each[1:])
    plain = unet(x, t, stacked, ByHand(sites, branches))
    alone = unet(x, t, stacked)
    assert golden.relative_error(alone[1:], plain[1:]) > 1e-3, "the injection does something"
    assert golden.relative_error(alone[:1], plain[:1]) <= 1e-5
    shared = unet(x, t, stacked, ShareSource(sites, branches))
    assert golden.relative_error(shared, plain) <= 1e-5
    for compact in (False, True):
        record = Record(sites, compact)
        unet(x[:1], t[:1], each[0], record)
        replayed = unet(x[1:], t[1:], others, Replay(record.features))
        assert golden.relative_error(replayed, plain[1:]) <= 1e-5
    # taps of the caller's own after the injection's, and the source's features as they saw them
    chained = unet(x, t, stacked, Chain(ShareSource(sites, branches), ByHand(sites, branches)))
    assert golden.relative_error(chained, plain) <= 1e-5


@torch.no_grad()
def test_hooks_see_the_documented_shapes_at_every_site_in_order(consisti2v, unet):
    g, f, h, w, m, called = 2, 3, 4, 6, 7, []

    class Look(Taps):
        def hidden(self, site, x):
            called.append(site)
            assert x.shape[0] == g * f and x.ndim == 4
            return x

        def qkv(self, site, q, k, v):
            called.append(site)
            heads, d = q.shape[-2:]
            assert k.shape == v.shape and k.shape[-2:] == (heads, d)
            if "spatial" in site and site.endswith("self"):
                assert q.shape[0] == k.shape[0] == g * f and k.shape[1] == 2 * q.shape[1]
            elif site.endswith("self"):
                assert q.shape[:2] == (g, f) and k.shape[:2] == (g, f + 8)
                assert q.shape[2] == k.shape[2]
            else:
                assert k.shape[:2] == (g, m)
                assert q.shape[0] == g and q[0, ..., 0, 0].numel() % f == 0
            if "down.0" in site:
                positions = {"self": (h * w, f)["temporal" in site]}.get(site.rsplit(".")[-1])
                assert positions is None or q.shape[1] == positions
            return q, k, v

        def output(self, site, y):
            expected = g * f if "spatial" in site and site.endswith("self") else g
            assert y.shape[0] == expected and called[-1] == site
            return y

    conditions = unet.condition(normal(g, m, 32), torch.tensor([3, 3]))
    unet(normal(g, 4, f, h, w), torch.tensor([1, 1]), conditions, Look())
    assert tuple(called) == unet.sites == consisti2v.backbone.sites
    assert len(called) == len(set(called)) == 22 + 2 * 16 + 2 * 15
    assert {name: len(sites) for name, sites in consisti2v.backbone.groups.items()} == {
        "conv": 1,
        "spatial": 8,
        "temporal": 8,
    }
    assert frozenset().union(*consisti2v.backbone.groups.values()) <= {*called}
    assert not [x for x in called if x.startswith("mid.temporal")]


def test_options(consisti2v):
    read = consisti2v.backbone.options
    assert read({}) == {"frame_stride": 3, "source_frame": "own"}
    assert read({"frame_stride": 8})["frame_stride"] == 8
    assert consisti2v.backbone.uses_edited_source_frame(read({"source_frame": "edited"}))
    assert not consisti2v.backbone.uses_edited_source_frame(read({}))
    for wrong, message in (
        ({"frame_stride": 0}, "frame_stride: 0"),
        ({"frame_stride": 1.5}, "frame_stride: 1.5"),
        ({"source_frame": "both"}, "source_frame.*both"),
        ({"fps": 8}, "fps"),
    ):
        with pytest.raises(InputError, match=message):
            read(wrong)


def test_defaults_are_the_original_s(consisti2v):
    defaults = consisti2v.defaults
    assert (defaults.size, defaults.frames, defaults.fps) == ((256, 256), 5, 8)
    assert (defaults.steps, defaults.start) == (50, 4)
    assert defaults.guidance == {"text": 35.0, "image": 1.0}
    assert defaults.injection == anyv2v.Injection(conv=0.2, spatial=0.2, temporal=0.5)
    assert defaults.negative_prompt.startswith("Distorted, discontinuous, Ugly, blurry")


def test_a_prediction_refuses_what_its_conditions_are_not_for(consisti2v):
    backbone, x = consisti2v.backbone, normal(1, 4, 3, 5, 9)
    first = FirstFrame(PICTURE, x[:, :, :1], 72, 3, x)
    with torch.no_grad():
        conditions = backbone.branches("", "", first, {"text": 1, "image": 2}, options())
        for latents, t, message in (
            (normal(1, 4, 3, 4, 4), 1, r"\(5, 9\)"),
            (x, 1000, "t: 1000"),
            (x, 0.5, "t: 0.5"),
        ):
            with pytest.raises(InputError, match=message):
                backbone.predict(latents, t, conditions.conditions[0])


def test_branches_are_stacked_in_order():
    def branch(number, **more):
        context = {site: (torch.full((1, 2), number), torch.full((1, 3), -number)) for site in "ab"}
        return Conditions(context, torch.full((1, 5), number), torch.zeros(1).long(), **more)

    other = torch.ones(1, 4, 1, 2, 2)
    stacked = Conditions.stack([branch(1.0), branch(2.0, first={0: other}), branch(3.0)], [0, 0, 1])
    for site in "ab":
        key, value = stacked.context[site]
        assert key[:, 0].tolist() == [1, 2, 3] and value[:, 0].tolist() == [-1, -2, -3]
    assert stacked.stride[:, 0].tolist() == [1, 2, 3]
    assert stacked.samples.tolist() == [0, 0, 1] and list(stacked.first) == [1]
    x = stacked.each_branch(torch.zeros(2, 4, 3, 2, 2))
    assert x.sum((1, 3, 4)).tolist() == [[0, 0, 0], [16, 0, 0], [0, 0, 0]]
    assert Conditions.stack([branch(1.0)] * 3).samples.tolist() == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_least_that_a_prediction_needs_is_below_what_it_takes(consisti2v, device):
    # the rest is that of PyTorch's own feed-forward, see `activation_bytes`
    twin = UNet(UNetConfig(**{**SIZES, "level_channels": (64, 64)}))
    with fake_mode(device) as there:
        unet = meta_copy(twin, there)
        text, stride = torch.empty(2, 9, 16, device=there), torch.zeros(2, device=there)
        conditions = unet.condition(text, stride)
        latents, t = torch.empty(2, 4, 8, 16, 16, device=there), torch.zeros(2, device=there)
        taken = count(lambda: unet(latents, t, conditions)).peak_bytes
    backbone = replace(consisti2v.backbone, unet=twin)
    least = backbone.activation_bytes(2, 8, 16, 16)
    assert least <= taken <= 2 * least
    half = replace(backbone, unet=meta_copy(twin, torch.device("meta"), torch.float16))
    assert half.activation_bytes(2, 8, 16, 16) == least // 2


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"spatial_heads": (2,)}, "disagree"),
        ({"attention": (True,)}, "disagree"),
        ({"groups": 12}, "32 is not divisible by groups, 12"),
        (
            {"level_channels": (16, 64)},
            "16 is not divisible by the groups of temp",
        ),
        ({"spatial_heads": (3, 4)}, "32 is not divisible by spatial_heads, 3"),
        ({"temporal_heads": 5}, "32 is not divisible by temporal_heads, 5"),
    ],
)
def test_sizes_that_make_no_network(wrong, message):
    with pytest.raises(InputError, match=message):
        UNetConfig(**{**SIZES, **wrong})


def test_epsilons_of_the_norms(unet):
    """Those in the facts of the original; of the last norm no golden has features so quiet."""
    for name, module in unet.named_modules():
        if isinstance(module, GroupNorm):
            of_block = "temporal" in name or "spatial" in name
            assert module.eps == (1e-6 if of_block else 1e-5), name
            assert module.num_groups == (32 if "temporal_conv" in name else 16), name


@torch.no_grad()
def test_layer_norms_of_quiet_tokens(unet):
    """Against float64 with the original's epsilon; no golden has tokens so quiet that it shows."""
    norms = {k: m for k, m in unet.named_modules() if isinstance(m, (LayerNorm, AddNorm))}
    assert len(norms) == 3 * (16 + 15)
    for name, norm in norms.items():
        x = 2e-3 * normal(3, len(norm.weight))
        wide = x.double(), norm.weight.shape, norm.weight.double(), norm.bias.double()
        ours = norm(torch.zeros_like(x), x)[1] if isinstance(norm, AddNorm) else norm(x)
        truth = F.layer_norm(*wide, eps=1e-5)
        assert golden.relative_error(ours, truth) <= 1e-5, name


def test_levels_of_a_run(consisti2v):
    """From 981 down to 1, then clean latents; noise grows with the timestep."""
    levels = consisti2v.backbone.sampler(options()).levels(50)
    assert [level.t for level in levels[:-1]] == list(range(981, 0, -20))
    assert (levels[-1].alpha, levels[-1].sigma) == (1, 0)
    assert all(a.sigma > b.sigma for a, b in pairwise(levels))
    assert levels[0].alpha ** 2 == pytest.approx(0.00195883, rel=1e-5)
