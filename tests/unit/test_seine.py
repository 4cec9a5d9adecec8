"""SEINE's network, conditions and schedules against the original code's."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from anyv2v import NO_TAPS, InputError, Record, Replay, ShareSource, Taps
from anyv2v.backbones.seine.config import UNetConfig
from anyv2v.backbones.seine.schedule import DDPMSchedule, ddim_schedule
from anyv2v.backbones.seine.sites import paper_sites
from anyv2v.backbones.seine.transformer import bucket
from anyv2v.backbones.seine.unet import UNet, clip_norm
from anyv2v.injection.fractions import Group, Injection, sites_per_step
from anyv2v.nn.embeddings import sinusoids
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.transformer import AddNorm, LayerNorm
from tests.draw import normal, redraw
from tests.oracles import golden, seine_golden
from tests.oracles.seine_golden import about, error, tensors

BOUND = 1e-5
GROUPS = ("conv", "spatial", "temporal", "cross")
INNER = {
    "norm1": "norm1",
    "attn1": "self",
    "norm2": "norm2",
    "attn2": "cross",
    "norm_temp": "norm_temporal",
    "attn_temp.to_q": "temporal.q",
    "attn_temp.to_k": "temporal.k",
    "attn_temp.to_v": "temporal.v",
    "attn_temp": "temporal",
    "norm3": "norm3",
    "ff": "ff",
}


def our_name(name):
    """Our name of the module whose output a golden of the UNet is."""
    name = name.replace("down_blocks", "down").replace("up_blocks", "up")
    name = name.replace("mid_block", "mid").replace("conv_norm_out", "norm_out")
    name = name.replace("resnets", "res").replace("attentions", "spatial")
    if match := re.fullmatch(r"(.*)\.transformer_blocks\.0\.(.*)", name):
        return f"{match[1]}.block.{INNER[match[2]]}"
    return name


def in_their_layout(y, shape, frames):
    """An output of ours, channels-last, in the layout of the original's."""
    y = y[-1] if isinstance(y, tuple | list) else y
    c = y.shape[-1]
    if len(shape) == 5:
        y = y if y.ndim == 4 else y.flatten(0, 1)
        return rearrange(y, "(b f) h w c -> b c f h w", f=frames)
    if len(shape) == 4:
        return y.reshape(shape[0], *shape[2:], c).permute(0, 3, 1, 2)
    if shape[0] == frames:
        return y.reshape(shape)
    return y.reshape(frames, -1, c).transpose(0, 1)


@pytest.fixture(scope="module")
def unet(seine):
    return seine.backbone.unet


def predict(unet, sample, context, t, taps=NO_TAPS):
    """The UNet on 9 channels, of which the last 5 are mask and masked video."""
    conditions = unet.condition(context, sample[:, 4:])
    return unet(sample[:, :4], torch.tensor([t]).expand(len(sample)), conditions, taps)


@torch.no_grad()
def test_every_block_equals_the_original(unet):
    x = tensors("unet")
    assert error(predict(unet, x["in.sample"], x["in.context"], 500), "unet", "out") <= BOUND
    sample, context = x["in.sample"][1:], x["in.context"][1:]
    for t in (0, 999):
        assert error(predict(unet, sample, context, t), "unet", f"out.t{t}") <= BOUND
    outs = {}
    modules = {module: name for name, module in unet.named_modules()}
    handles = [
        module.register_forward_hook(lambda m, args, y: outs.__setitem__(modules[m], y))
        for module in modules
    ]
    predict(unet, sample, context, 500)
    for handle in handles:
        handle.remove()
    frames, seen = sample.shape[2], set()
    for name, (shape, *_) in seine_golden.INDEX["unet"].items():
        if name.startswith(("in.", "out")):
            continue
        seen.add(name)
        if name == "time_proj":
            ours = sinusoids(torch.tensor([500]), 36)
        elif name == "time_embedding":
            ours = outs[name]
        elif name.endswith("time_rel_pos_bias"):
            path = our_name(name.removesuffix(".time_rel_pos_bias"))
            ours = unet.get_submodule(path).bias(frames)
        else:
            ours = in_their_layout(outs[our_name(name)], shape, frames)
        # our last norm goes on with SiLU at once
        then = {"then": F.silu} if name == "conv_norm_out" else {}
        assert error(ours, "unet", name, **then) <= BOUND, name
    assert len(seen) == 96


@torch.no_grad()
@pytest.mark.parametrize("name, t", [("odd", 301), ("long", 700), ("single", 20)])
def test_other_sizes_equal_the_original(unet, name, t):
    """40 frames see the classes of distances above 8."""
    sample = tensors("unet_sizes")[f"{name}.in.sample"]
    ours = predict(unet, sample, tensors("text")["prompt"], t)
    assert error(ours, "unet_sizes", f"{name}.out") <= BOUND


@torch.no_grad()
@pytest.mark.parametrize("frames", [4, 16, 40])
def test_attention_along_the_frames_equals_the_original(unet, frames):
    attention = unet.get_submodule("up.1.spatial.1.block.temporal")
    x = tensors("temporal")[f"f{frames}.in"]
    assert error(attention.bias(frames), "temporal", f"f{frames}.bias") <= BOUND
    y = attention(x.transpose(0, 1)[None], taps=NO_TAPS)[0].transpose(0, 1)
    assert error(y, "temporal", f"f{frames}.out") <= BOUND


def test_classes_of_distances_equal_the_original():
    assert torch.equal(bucket(torch.arange(-80, 81)), tensors("temporal")["buckets"])


@torch.no_grad()
def test_epsilons_equal_the_original(unet, seine):
    """The inputs are so quiet that another epsilon changes the results."""
    g = tensors("quiet_modules")
    x = rearrange(g["in"], "b c f h w -> (b f) h w c").contiguous()

    def check(y, name):
        y = rearrange(y, "(b f) h w c -> b c f h w", f=4)
        assert error(y, "quiet_modules", name) <= BOUND, name

    check(unet.down[0].res[0](x, g["emb"], taps=NO_TAPS), "down_blocks.0.resnets.0")
    transformer = unet.down[0].spatial[0]
    context = {transformer.block.cross_site: transformer.block.cross.read(g["context"])}
    ctx = ForwardContext(g["emb"], context, 4)
    check(transformer(x, ctx, taps=NO_TAPS), "down_blocks.0.attentions.0")
    ours = transformer.block(x.flatten(1, 2), ctx, taps=NO_TAPS)
    assert error(ours, "quiet_modules", "block") <= BOUND
    truth = F.silu(g["conv_norm_out"])
    ours = rearrange(clip_norm(unet.norm_out, x, 1), "(b f) h w c -> b c f h w", f=4)
    assert golden.relative_error(ours, truth) <= BOUND
    vae = seine.backbone.codec.vae
    for ours, given, name in (
        (vae.encoder.down[0].res[0], "vae.in", "vae.encoder.down_blocks.0.resnets.0"),
        (vae.decoder.mid.attention, "vae.mid.in", "vae.decoder.mid_block.attentions.0"),
    ):
        x = g[given].permute(0, 2, 3, 1).contiguous()
        y = ours(x) if "mid" in given else ours(x, taps=NO_TAPS)
        assert error(y.permute(0, 3, 1, 2), "quiet_modules", name) <= BOUND, name


@torch.no_grad()
def test_layer_norms_of_quiet_tokens(unet):
    """Against float64 with the original's epsilon: in a block only the first norms are quiet."""
    norms = {k: m for k, m in unet.named_modules() if isinstance(m, (LayerNorm, AddNorm))}
    assert len(norms) == 4 * 16
    for name, norm in norms.items():
        x = 2e-3 * normal(3, len(norm.weight))
        wide = x.double(), norm.weight.shape, norm.weight.double(), norm.bias.double()
        ours = norm(torch.zeros_like(x), x)[1] if isinstance(norm, AddNorm) else norm(x)
        assert golden.relative_error(ours, F.layer_norm(*wide, eps=1e-5)) <= BOUND, name


class Seen(Taps):
    """Calls other taps, and keeps what they and the attentions gave."""

    def __init__(self, inner):
        self.inner, self.sites = inner, inner.sites
        self.features, self.outputs, self.before = {}, {}, {}

    def feature(self, site, feature):
        self.before[site] = feature.compute()
        self.features[site] = self.inner.feature(site, feature)
        return self.features[site]

    def output(self, site, y):
        self.outputs[site] = y
        return y


@torch.no_grad()
def test_injection_equals_the_original(unet, seine):
    g = tensors("pnp_sites")
    taps = Seen(ShareSource(frozenset().union(*seine.backbone.groups.values()), 3))
    res = {}
    hook = unet.up[1].res[1].register_forward_hook(lambda m, args, y: res.__setitem__("out", y))
    out = predict(unet, g["unet.in.sample"], g["unet.in.context"], 900, taps)
    hook.remove()
    assert error(out, "pnp_sites", "unet.out") <= BOUND
    h = rearrange(taps.before["up.1.res.1"][0], "(b f) h w c -> b c f h w", b=3)
    assert error(h, "pnp_sites", "up_blocks.1.resnets.1.conv2.before") <= BOUND
    h = rearrange(res["out"], "(b f) h w c -> b c f h w", b=3)
    assert error(h, "pnp_sites", "up_blocks.1.resnets.1.out") <= BOUND
    kinds, count = {"attn1": "self", "attn2": "cross", "attn_temp": "temporal"}, 0
    for name, (shape, *_) in seine_golden.INDEX["pnp_sites"].items():
        if name.startswith("unet") or "resnets" in name:
            continue
        *place, kind, what = name.replace("up_blocks", "up").split(".")
        site = ".".join([*place, "block", kinds[kind]]).replace("attentions", "spatial")
        if what == "out":
            # that of all branches, or of the edit alone
            y, alone = taps.outputs[site], shape[0] in (4, 128)
            y = rearrange(y, "b n c -> b n c" if kind != "attn_temp" else "b f n c -> (b n) f c")
            y = y.reshape(-1, *shape[1:])
            y = y.unflatten(0, (3, -1))[1] if alone else y
        else:
            y = taps.features[site][("query", "key").index(what)].flatten(-2)
            if kind == "attn_temp":
                y = y[0].transpose(0, 1)
            elif not (kind == "attn2" and what == "key"):
                y = y.reshape(shape)
        assert error(y, "pnp_sites", name) <= BOUND, name
        count += 1
    assert count == 42


class ByHand(Taps):
    """The injection written out: everything is computed, then replaced by the first branch's."""

    def __init__(self, sites, branches):
        self.sites, self.branches = frozenset(sites), branches

    def hidden(self, site, h):
        return self.source(h)

    def qk(self, site, q, k):
        return self.source(q), self.source(k)


@pytest.fixture(scope="module")
def small():
    """A network of two levels, whose groups have the same names."""
    return redraw(UNet(UNetConfig(4, (32, 64), (1, 2), 1, 8, 4)), 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "group, branches",
    [
        *(("all", branches) for branches in (1, 2, 4)),
        *((group, 2) for group in GROUPS),
        *(pytest.param(group, n, marks=pytest.mark.slow) for group in GROUPS for n in (1, 4)),
    ],
)
def test_sharing_and_replay_equal_replacing(small, group, branches):
    groups, total = paper_sites(2, 1), branches + 1
    sites = sum(groups.values(), []) if group == "all" else groups[group]
    x, masked = normal(total, 4, 3, 4, 4), normal(total, 5, 3, 4, 4, seed=1)
    text, t = normal(total, 6, 8, seed=2), torch.full((total,), 700)
    conditions = small.condition(text, masked)
    truth = small(x, t, conditions, ByHand(sites, total))
    assert golden.relative_error(small(x, t, conditions), truth) > 1e-3
    shared = small(x, t, conditions, ShareSource(sites, total))
    assert golden.relative_error(shared, truth) <= BOUND
    source = small.condition(text[:1], masked[:1])
    edited = small.condition(text[1:], masked[1:])
    for compact in (False, True):
        record = Record(sites, compact)
        small(x[:1], t[:1], source, record)
        replayed = small(x[1:], t[1:], edited, Replay(record.features))
        assert golden.relative_error(replayed, truth[1:]) <= BOUND


@torch.no_grad()
def test_branches_of_one_sample_share_what_their_text_does_not_change(small):
    unet = small
    x, masked, text = normal(2, 4, 3, 5, 4), normal(2, 5, 3, 5, 4), normal(3, 6, 8)
    samples = [0, 1, 1]
    each = [unet.condition(text[i : i + 1], masked[s : s + 1]) for i, s in enumerate(samples)]
    conditions = type(each[0]).stack(each, samples)
    assert len(conditions.masked) == 2
    t = torch.tensor([300, 300])
    truth = torch.cat([unet(x[s : s + 1], t[:1], each[i]) for i, s in enumerate(samples)])
    assert golden.relative_error(unet(x, t, conditions), truth) <= BOUND
    # taps before the first cross-attention see every branch
    seen = Seen(Taps())
    seen.sites = None
    assert golden.relative_error(unet(x, t, conditions, seen), truth) <= BOUND
    assert len(seen.features["down.0.res.0"][0]) == 3 * 3


def test_tokens_and_text_equal_the_original(seine):
    facts = about()
    texts = {
        "empty": "",
        "prompt": facts["prompt"],
        "negative": facts["negative"],
        "inversion": facts["inversion_prompt_of_n20p"],
    }
    for name, text in texts.items():
        assert torch.equal(seine.tokenize(text), tensors("text")[f"{name}.ids"]), name
        assert error(seine.encode_text(text, clip_skip=0), "text", name) <= BOUND
        with torch.no_grad():
            own = seine.backbone.encode_text(text)
        assert torch.equal(own, seine.encode_text(text, clip_skip=0))
    with torch.no_grad():
        long = seine.backbone.text(tensors("text")["long.ids"], 0)
    assert error(long, "text", "long") <= BOUND


@torch.no_grad()
def test_frames_and_masked_videos_equal_the_original(seine, seine_video):
    g, frames = tensors("vae"), seine_video.frames
    latents = seine.encode_frames(frames)
    assert error(latents, "vae", "video.latents") <= BOUND
    assert error(latents[0].transpose(0, 1), "vae", "video.mean") <= BOUND
    vae = seine.backbone.codec.vae
    assert error(vae.encode(g["edited.pixels"]), "vae", "edited.mean") <= BOUND
    # flat pictures are where sums of squares lose digits, so the bound is the original's own
    assert error(vae.encode_gray(8, 16), "vae", "grey.mean") <= 3e-5
    source = seine.condition("", frames[0], 4, (128, 64))
    assert torch.equal(source.masked[:, :1], g["edited.mask"])
    assert torch.equal(source.masked[:, :1], tensors("inversion")["n10.mask"])
    assert error(source.masked[:, 1:], "vae", "source.masked_video") <= BOUND
    assert error(source.masked[:, 1:], "inversion", "n10.masked_video") <= BOUND
    truth = g["video.decoded.frames"][0].int()
    off = (torch.from_numpy(seine.decode(g["video.latents"])).int() - truth).abs()
    assert off.max() <= 1 and (off > 0).float().mean() <= 1e-3
    pixels = vae.decode(g["video.latents"][0].transpose(0, 1)[:1])
    assert error(pixels, "vae", "video.decoded.float") <= BOUND


def test_schedules_equal_the_original():
    g, ddim = tensors("scheduler"), ddim_schedule()
    ddpm = DDPMSchedule(ddim)
    assert torch.allclose(ddim.alphas_cumprod, g["alphas_cumprod"], rtol=2e-6, atol=0)
    betas = g["betas"].double()
    assert torch.allclose(ddim.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-5)
    assert ddim.alpha_bar(-1) == ddim.alpha_bar(0)
    assert math.isclose(ddim.alpha_bar(-1), g["final_alpha_cumprod"].item(), rel_tol=1e-6)
    for steps in (5, 7, 10, 20, 40, 50, 250, 500):
        assert ddim.timesteps(steps) == g[f"ddim.{steps}.timesteps"].tolist()
        *levels, end = ddpm.levels(steps)
        timesteps = [level.t for level in levels]
        assert timesteps == g[f"ddpm.{steps}.timesteps"].tolist()
        assert [x.inversion_level.t for x in levels] == [t + 1 for t in timesteps]
        assert (end.alpha, end.sigma, end.inversion_level) == (1.0, 0.0, None)
        assert [x.index for x in (*levels, end)] == list(range(steps + 1))
    for steps in (7, 10, 50):
        pairs = pairwise(ddpm.levels(steps))
        a, b, noise = torch.tensor([ddpm.coefficients(*pair) for pair in pairs]).T
        assert noise[-1] == 0
        for ours, name in ((a, "coefficient_x"), (-b, "coefficient_eps"), (noise**2, "variance")):
            truth = g[f"ddpm.{steps}.{name}"]
            if name == "variance":
                # none is added after t = 0
                truth = truth[:-1]
                ours = ours[:-1]
            assert torch.allclose(ours, truth.abs(), rtol=1e-5, atol=0), name


def test_options_and_defaults(seine):
    backbone, defaults = seine.backbone, seine.defaults
    assert backbone.options({}) == {"sampler": "ddpm"}
    assert backbone.sampler({"sampler": "ddim"}) is backbone.schedule
    assert isinstance(backbone.sampler(backbone.options({})), DDPMSchedule)
    with pytest.raises(InputError, match="sampler: 'euler' is not one of ddpm, ddim"):
        backbone.options({"sampler": "euler"})
    with pytest.raises(InputError, match="fps"):
        backbone.options({"fps": 8})
    assert (defaults.steps, defaults.guidance, defaults.negative_prompt) == (50, {"text": 4.0}, "")
    assert defaults.injection == Injection(conv=0.2, spatial=0.2, temporal=0.5, cross=0.0)
    assert (defaults.size, defaults.frames, defaults.fps) == ((512, 512), 16, 8)
    assert [len(backbone.groups[g]) for g in GROUPS] == [
        1,
        *[8] * 3,
    ]


def test_steps_that_inject(seine):
    g = json.loads((seine_golden.OWN / "injected_timesteps.json").read_text())
    for steps, counts in g.items():
        for fraction in ("0.2", "0.29", "0.43", "0.58", "1.0"):
            group = Group(frozenset("x"), float(fraction))
            injected = sites_per_step([group], int(steps), 0, group.sites)
            assert sum(map(bool, injected.values())) == counts[fraction]
    injection = Injection(conv=0.3, spatial=0.6, temporal=0.5, cross=0.4)
    plan = seine.step_plan(10, injection=injection)
    by_group = {
        name: sum(not sites.isdisjoint(step.sites) for step in plan.steps)
        for name, sites in seine.backbone.groups.items()
    }
    assert by_group == {"conv": 3, "spatial": 6, "temporal": 5, "cross": 4}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"heads": (1, 1)}, r"widths \(36, 40, 72\) and heads \(1, 1\)"),
        ({"heads": (1, 1, 3)}, "gives each 24 channels"),
        ({"groups": 5}, "width 36 is not a multiple of groups 5"),
        ({"heads": (1, 3, 1)}, "width 40 is not a multiple of groups 4 and heads 3"),
    ],
)
def test_sizes_that_make_no_network(changed, message):
    sizes = {
        "channels": 4,
        "level_channels": (36, 40, 72),
        "heads": (1, 1, 2),
        "layers": 2,
        "context_dim": 40,
        "groups": 4,
    }
    with pytest.raises(InputError, match=message):
        UNetConfig(**(sizes | changed))


def test_conditions_of_other_sizes_and_timesteps_are_refused(seine, seine_video):
    conditions = seine.condition("", seine_video.frames[0], 4, (128, 64))
    with pytest.raises(InputError, match="are not of conditions of"):
        seine.predict(normal(1, 4, 3, 8, 16), 1, conditions)
    with pytest.raises(InputError, match="t: 1000"):
        seine.predict(normal(1, 4, 4, 8, 16), 1000, conditions)
