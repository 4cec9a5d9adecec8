"""ConsistI2V against the original code, tensor by tensor (tests/goldens/README.md)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import anyv2v
from anyv2v.injection.taps import ShareSource, Taps
from anyv2v.media.image import fit_frame, pixels_of
from anyv2v.nn.attention import Attention
from anyv2v.nn.embeddings import sinusoids
from anyv2v.nn.forward_context import ForwardContext
from tests.oracles import consisti2v_golden as golden
from tests.oracles import golden as original

SINGLE, WHOLE = 1e-5, 1e-4
"""The largest relative L2 error of a forward pass, and of a procedure of many."""
ABOUT = golden.ABOUT
STEPS, SIZES = ABOUT["steps"], {"text": ABOUT["cfg_txt"], "image": ABOUT["cfg_img"]}
TIMES = [901 - 100 * i for i in range(STEPS)]
OURS = {
    "down_blocks": "down",
    "up_blocks": "up",
    "mid_block": "mid",
    "resnets": "res",
    "conv3ds": "temporal_conv",
    "tempo_attns": "temporal",
    "attentions": "spatial",
    "transformer_blocks.0": "block",
    "attn1": "self",
    "attn2": "cross",
    "conv_norm_out": "norm_out",
    "frame_stride_embedding": "frame_stride",
}
"""A module's name in the original -> ours, where they differ."""


def ours(name: str) -> str:
    return re.sub("|".join(map(re.escape, OURS)), lambda match: OURS[match[0]], name)


@contextmanager
def outputs(network: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fills the dict with what every module puts out while the context lasts."""
    seen: dict[str, Tensor] = {}

    def look(name):
        def hook(module, inputs, output):
            seen[name] = output[-1] if isinstance(output, list | tuple) else output

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    yield seen
    for hook in hooks:
        hook.remove()


def as_theirs(x: Tensor, shape: list[int]) -> Tensor:
    """Features of ours, (b f, h, w, c) or tokens of any grouping, in the original's layout."""
    if len(shape) == 4:
        return x.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return x.expand(shape[0], -1) if len(shape) == 2 else x.reshape(shape)


def queries(x: Tensor) -> Tensor:
    """Query or key of ours in the original's layout: a row per frame, or per position."""
    x = x.flatten(-2)
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 4 else x


class Spy(Taps):
    """Keeps query and key of the sites."""

    def __init__(self):
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def qk(self, site, q, k):
        self.seen[site] = queries(q), queries(k)
        return q, k


def shape_of(file: str, name: str) -> list[int]:
    return golden.INDEX[f"{file}.safetensors"][name]["shape"]


@pytest.fixture(scope="module")
def unet(consisti2v):
    return consisti2v.backbone.unet


@pytest.fixture(scope="module")
def clip():
    return anyv2v.Video(golden.tensors("inputs")["frames"].numpy(), 8)


@pytest.fixture(scope="module")
def source(consisti2v, clip):
    return consisti2v.invert(clip, "ddim", STEPS)


@pytest.mark.parametrize("name", ["empty", "negative", "prompt"])
@torch.no_grad()
def test_text(consisti2v, name):
    prompt = {"empty": ABOUT["inversion_prompt"]}.get(name) or ABOUT.get(name, "")
    truth = golden.tensors("text")
    assert torch.equal(consisti2v.tokenize(prompt), truth[f"{name}.ids"])
    assert golden.error("text", name, consisti2v.encode_text(prompt)) <= SINGLE


@torch.no_grad()
def test_autoencoder(consisti2v, clip):
    latents = consisti2v.encode_frames(clip.frames)
    assert golden.error("vae", "video.latents", latents) <= SINGLE
    raw = golden.tensors("inputs")["edited_raw"].numpy()
    stretched = fit_frame(raw, (ABOUT["width"], ABOUT["height"]), "stretch", bilinear=True)
    pixels = pixels_of(torch.from_numpy(stretched[None]))
    assert golden.error("vae", "edited.pixels.stretched", pixels) <= 1e-6
    frame = consisti2v.backbone.codec.vae.encode(pixels)
    assert golden.error("vae", "edited.latent", frame) <= SINGLE


def test_schedule(consisti2v):
    truth, schedule = golden.tensors("scheduler"), consisti2v.backbone.schedule
    assert torch.equal(schedule.alphas_cumprod, truth["alphas_cumprod"])
    assert schedule.timesteps(STEPS) == truth["ddim.timesteps"].tolist() == TIMES
    assert schedule.timesteps(STEPS)[::-1] == truth["inverse.timesteps"].tolist()
    assert schedule.timesteps(50)[0] == 981 and schedule.alpha_bar(-1) == 1


@torch.no_grad()
def test_every_block_of_a_forward_pass(unet):
    """Of the second of two branches by itself; the file has 124 tensors."""
    truth, spy = golden.tensors("unet"), Spy()
    (t,), (stride,) = truth["in.timestep"], truth["in.frame_stride"]
    x = torch.cat([truth["in.first_frame_latents"], truth["in.sample"]], dim=2)[1:]
    with outputs(unet) as seen:
        conditions = unet.condition(truth["in.context"][1:], stride[None])
        unet(x, t[None], conditions, spy)
    seen["time_proj#0"], seen["time_proj#1"] = (sinusoids(n[None], 32) for n in (t, stride))
    errors = {}
    for name in truth:
        place = ours(name)
        if name.startswith(("in.", "out")):
            continue
        if name.endswith((".to_q", ".to_k")):
            value = spy.seen[place.rsplit(".", 1)[0]][name.endswith(".to_k")]
        elif name == "conv_norm_out":
            continue  # below: ours ends with an activation
        else:
            value = as_theirs(seen[place], shape_of("unet", name))
        errors[name] = golden.error("unet", name, value)
    assert len(errors) == 114
    assert max(errors.values()) <= SINGLE, {k: v for k, v in errors.items() if v > SINGLE}
    every = golden.INDEX["unet.safetensors"]["conv_norm_out"].get("every", 1)
    last = as_theirs(seen["norm_out"], shape_of("unet", "conv_norm_out")).flatten()[::every]
    assert original.relative_error(last, F.silu(truth["conv_norm_out"].flatten())) <= SINGLE


@torch.no_grad()
def test_predictions(unet):
    truth = golden.tensors("unet")
    x = torch.cat([truth["in.first_frame_latents"], truth["in.sample"]], dim=2)
    for name, rows, t, stride in (
        ("out", slice(0, 2), 501, 3),
        ("out.stride1", slice(1, 2), 501, 1),
        ("out.stride5", slice(1, 2), 501, 5),
        ("out.t1", slice(1, 2), 1, 3),
    ):
        text, latents = truth["in.context"][rows], x[rows]
        conditions = unet.condition(text, torch.tensor([stride]).expand(len(text)))
        prediction = unet(latents, torch.tensor([t]).expand(len(text)), conditions)
        assert golden.error("unet", name, prediction[:, :, 1:]) <= SINGLE, name


@pytest.mark.parametrize("stride", [1, 5])
@torch.no_grad()
def test_the_stride_that_the_options_state(consisti2v, clip, stride):
    """Conditions made from a prompt and options, where all other goldens have the default of 3."""
    truth, options = golden.tensors("unet"), {"frame_stride": stride}
    x = torch.cat([truth["in.first_frame_latents"], truth["in.sample"]], dim=2)[1:]
    frames = clip.frames
    size = frames.shape[2], frames.shape[1]
    conditions = consisti2v.condition(
        ABOUT["prompt"], frames[0], len(frames), size, options=options
    )
    prediction = consisti2v.predict(x, 501, conditions)
    assert golden.error("unet", f"out.stride{stride}", prediction[:, :, 1:]) <= SINGLE


class ContextPerFrame(Taps):
    """Gives every frame a context of its own, as the original's spatial transformer would take."""

    def __init__(self, layer: Attention, context: Tensor):
        self.sites = frozenset({layer.site or ""})
        self.layer, self.context = layer, context

    def feature(self, site, feature):
        query = feature.compute()[0].unflatten(1, (len(self.context), -1)).flatten(0, 1)
        return query, *self.layer.read(self.context)


@torch.no_grad()
def test_single_modules_on_quiet_inputs(unet):
    """On inputs of deviation 2e-3, where a wrong epsilon of a norm shows."""
    truth, level = golden.tensors("quiet_modules"), unet.down[0]
    x, frames = truth["in"].permute(0, 2, 3, 1).contiguous(), len(truth["in"])
    taps = ContextPerFrame(level.spatial[0].block.cross, truth["context"])
    conditions = unet.condition(truth["context"][:1], torch.tensor([3]))
    ctx = ForwardContext(truth["emb"], conditions.context, frames)
    got = {
        "resnets.0": level.res[0](x, truth["emb"] * 1e-3, taps=taps),
        "conv3ds.0": level.temporal_conv[0](x, frames),
        "attentions.0": level.spatial[0](x, ctx, taps=taps),
        "tempo_attns.0": level.temporal[0](x, ctx, taps=taps),
    }
    for name, y in got.items():
        y = y.permute(0, 3, 1, 2)
        assert golden.error("quiet_modules", f"down_blocks.0.{name}", y) <= SINGLE, name


class Injecting(ShareSource):
    """Keeps what the sites compute while it injects the source."""

    def __init__(self, sites, branches):
        super().__init__(sites, branches)
        self.seen: dict[str, Tensor] = {}

    def feature(self, site, feature):
        tensors = super().feature(site, feature)
        if len(tensors) == 1:
            (self.seen[f"{site}.before"],) = feature.compute()
        else:
            self.seen[f"{site}.query"], self.seen[f"{site}.key"] = map(queries, tensors[:2])
        return tensors

    def output(self, site, y):
        self.seen[f"{site}.out"] = y
        return y


@torch.no_grad()
def test_every_injected_site(consisti2v, unet):
    truth = golden.tensors("pnp_sites")
    x = torch.cat([truth["unet.in.first_frame_latents"], truth["unet.in.sample"]], dim=2)
    sites = frozenset().union(*consisti2v.backbone.groups.values())
    taps = Injecting(sites, 3)
    conditions = unet.condition(truth["unet.in.context"], torch.full((3,), 3))
    with outputs(unet) as seen:
        prediction = unet(x, torch.full((3,), 901), conditions, taps)
    assert golden.error("pnp_sites", "unet.out", prediction[:, :, 1:]) <= SINGLE
    taps.seen["up.1.res.1.conv2.before"] = taps.seen["up.1.res.1.before"]
    taps.seen["up.1.res.1.out"] = seen["up.1.res.1"]
    names = [name for name in truth if not name.startswith("unet.")]
    assert len(names) == 40
    for name in names:
        place = ours(name).replace(".self", ".block.self")
        value = as_theirs(taps.seen[place], shape_of("pnp_sites", name))
        assert golden.error("pnp_sites", name, value) <= SINGLE, name


@torch.no_grad()
def test_inversion(consisti2v, source, clip):
    start = consisti2v.encode_frames(clip.frames)
    assert golden.error("inversion", "start", start) <= SINGLE
    for i, t in enumerate(TIMES):
        assert golden.error("inversion", f"t{t}.after", source.at(i)) <= WHOLE, t
        assert torch.equal(source.at(i)[:, :, :1], start[:, :, :1]), "it is never noised"
    stacked = torch.stack([source.at(i) for i in range(STEPS)], dim=1)
    assert golden.error("inversion", "latents", stacked) <= WHOLE


@pytest.mark.slow
@torch.no_grad()
def test_predictions_of_the_inversion(consisti2v):
    """From the original's own latents of the step before."""
    truth, unet = golden.tensors("inversion"), consisti2v.backbone.unet
    conditions = unet.condition(golden.tensors("text")["empty"], torch.tensor([3]))
    before = truth["start"]
    for t in reversed(TIMES):
        eps = unet(before, torch.tensor([t]), conditions)[:, :, 1:]
        assert golden.error("inversion", f"t{t}.eps", eps) <= SINGLE, t
        before = truth[f"t{t}.after"]


def check_run(file: str, case: str, run) -> None:
    """Compares the latents of every step, the last ones and the frames, if they are stored."""
    seen: dict[int, Tensor] = {}
    edit = run(lambda i, x: seen.__setitem__(i, x.clone()))
    for i, t in enumerate(TIMES):
        assert golden.error(file, f"{case}.t{t}.after", seen[i][:, :, 1:]) <= WHOLE, t
    assert golden.error(file, f"{case}.final", edit.latents) <= WHOLE
    if (frames := golden.tensors(file).get(f"{case}.video_u8")) is not None:
        truth = frames[0].permute(1, 2, 3, 0).numpy().astype(int)
        assert np.mean(np.abs(edit.frames - truth) <= 1) >= 0.999


@pytest.mark.slow
def test_reconstruction(consisti2v, source):
    def run(after_step):
        return consisti2v.reconstruct(source, after_step=after_step, steps=STEPS)

    check_run("reconstruction", "cfg1", run)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["0_0_0", "1_1_1", "0.2_0.2_0.5"])
def test_injected_sampling(consisti2v, source, case):
    """The source branch sees the edited first frame, as in the original."""
    conv, spatial, temporal = map(float, case.split("_"))

    def run(after_step):
        return consisti2v.edit(
            source,
            golden.tensors("inputs")["edited_raw"].numpy(),
            ABOUT["prompt"],
            fit="stretch",
            negative_prompt=ABOUT["negative"],
            steps=STEPS,
            start=0,
            guidance=SIZES,
            injection=anyv2v.Injection(conv=conv, spatial=spatial, temporal=temporal),
            after_step=after_step,
            options={"source_frame": "edited", "frame_stride": ABOUT["frame_stride"]},
        )

    check_run("pnp", f"pnp{case}", run)
