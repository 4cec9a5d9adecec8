"""The UNet, block by block, against what the original computes."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.convert.formats.i2vgen import UNET
from anyv2v.convert.rename import rename
from anyv2v.injection.taps import NO_TAPS, Record, ShareSource, Taps
from anyv2v.nn.forward_context import ForwardContext
from anyv2v.nn.resnet import Conv2d
from anyv2v.runtime.accounting import fake_mode
from tests.oracles import golden

G = golden.tensors("unet")
QUIET = golden.tensors("quiet_modules")
F, H, W = 4, 8, 16

# inputs, and what has no module of its own in our network
NOT_MODULES = re.compile(r"in\.|out$|extra\.|time_proj|emb$|context$|.*\.in$|.*ff\.net\.0$")
FOLLOWED_BY_SILU = re.compile(r"\.(res|temporal_conv)\.\d+\.norm\d|norm_out$")


def conditions(editor, rows=slice(1, None)) -> Conditions:
    return editor.backbone.unet.condition(
        G["in.encoder_hidden_states"][rows],
        G["in.image_embeddings"][rows, 0],
        G["in.image_latents"][rows],
        G["in.fps"][rows],
    )


@pytest.fixture(scope="module")
def outputs(editor):
    """What every module of ours put out for the golden's second row, run alone."""
    unet, kept, hooks = editor.backbone.unet, {}, []
    for name, module in unet.named_modules():
        hooks.append(
            module.register_forward_hook(
                lambda m, args, out, name=name: kept.setdefault(name, []).append(out)
            )
        )
    with torch.no_grad():
        kept["out"] = [unet(G["in.sample"][1:], G["in.timestep"], conditions(editor))]
    for hook in hooks:
        hook.remove()
    return kept


def our_name(name: str) -> str:
    """The path of our module for the path of theirs."""
    pieces = {
        "down_blocks": "down",
        "up_blocks": "up",
        "mid_block": "mid",
        "resnets": "res",
        "temp_attentions": "temporal",
        "attentions": "spatial",
        "temp_convs": "temporal_conv",
        "transformer_blocks.0": "block",
        "attn1": "self",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "time_emb_proj": "time",
        "conv_norm_out": "norm_out",
        "image_latents_proj_in": "conditioning.latents",
        "image_latents_temporal_encoder": "conditioning.temporal",
        "image_latents_context_embedding": "conditioning.latent_tokens",
        "context_embedding": "conditioning.image_tokens",
        "fps_embedding": "conditioning.fps",
    }
    for theirs, ours in pieces.items():
        name = re.sub(rf"(?<![^.]){re.escape(theirs)}(?![^.])", ours, name)
    return name.replace("attn2", "self2" if "temporal" in name or "_in" in name else "cross")


def as_theirs(name: str, ours: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Our tensor in the layout of the original's."""
    if truth.ndim == 5:  # b c f h w, of ours b f (h w) c
        return ours.permute(0, 3, 1, 2).reshape(truth.shape)
    if truth.ndim == 4 and ours.ndim == 4 and "conditioning" not in name:  # (b f) h w c
        return ours.permute(0, 3, 1, 2)
    if truth.ndim == 3 and ours.ndim == 4:  # b f (h w) c -> (b h w) f c
        return ours.transpose(1, 2).flatten(0, 1)
    if truth.ndim == 3 and ours.shape[0] == 1:  # b (f h w) c -> (b f) (h w) c
        return ours.reshape(truth.shape)
    if truth.ndim == 2 and ours.shape[0] == 1:  # once per branch -> once per frame
        return ours.expand_as(truth)
    return ours


MODULES = [n for n in G if not NOT_MODULES.match(n)]


@pytest.mark.parametrize("name", MODULES)
def test_every_block_equals_the_original(outputs, name):
    ours = our_name(name)
    (out,) = outputs[ours]
    if isinstance(out, list):  # a level on the way down gives all its skips
        out = out[-1]
    if isinstance(out, tuple):  # the sum that was normalised, and the norm
        out = out[1]
    truth = G[name]
    if FOLLOWED_BY_SILU.search(ours):  # in one pass here
        truth = torch.nn.functional.silu(truth)
    assert golden.relative_error(as_theirs(ours, out, truth), truth) < 1e-5


def test_the_goldens_name_enough_blocks():
    assert len(MODULES) > 120
    every = {our_name(n) for n in MODULES}
    assert {f"up.{i}.spatial.{j}" for i in (1, 2, 3) for j in range(3)} <= every
    assert {f"{level}.temporal_conv.0" for level in ("mid", "down.3", "up.0")} <= every


def test_context_and_time_equal_the_original(editor, outputs):
    (context, _, fps) = outputs["conditioning"][0]
    assert golden.relative_error(context, G["context"]) < 1e-5
    emb = outputs["time_embedding"][0] + fps
    assert golden.relative_error(emb.expand(F, -1), G["emb"]) < 1e-5


def run(editor, rows, t=None, **changed):
    fields = {
        "text": G["in.encoder_hidden_states"][rows],
        "image_embedding": G["in.image_embeddings"][rows, 0],
        "image_latents": G["in.image_latents"][rows],
        "fps": G["in.fps"][rows],
    } | changed
    sample = changed.pop("sample", G["in.sample"][rows])
    fields.pop("sample", None)
    with torch.no_grad():
        c = editor.backbone.unet.condition(**fields)
        t = G["in.timestep"] if t is None else torch.tensor([t])
        return editor.backbone.unet(sample, t.expand(len(sample)), c)


def test_a_batch_of_branches_equals_the_original(editor):
    assert golden.relative_error(run(editor, slice(None)), G["out"]) < 1e-5


class Convolutions(TorchDispatchMode):
    """Counts those with a bias, and those without."""

    def __init__(self):
        super().__init__()
        self.biased, self.bare = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.biased += args[2] is not None
            self.bare += args[2] is None
        return func(*args, **(kwargs or {}))


@pytest.fixture
def biases_later(monkeypatch):
    """As on a GPU: biases are not the convolutions' business."""
    bare = lambda self, x: (self._convolve(x, None), self.bias)  # noqa: E731
    monkeypatch.setattr(Conv2d, "before_bias", bare)


def test_biases_added_later_equal_the_original(editor, biases_later):
    with Convolutions() as convolutions:
        out = run(editor, slice(None))
    assert golden.relative_error(out, G["out"]) < 1e-5
    assert convolutions.bare > convolutions.biased


def test_taps_see_residual_features_with_their_bias(editor, request):
    """Whether all are looked at, or one; and sharing them changes nothing that it should not."""
    unet, (site, other) = editor.backbone.unet, ("up.1.res.1", "up.2.res.0")

    def predict(taps, rows=slice(1, 2), copies=1):
        x = torch.cat([G["in.sample"][rows]] * copies)
        told = Conditions.stack([conditions(editor, rows)] * copies)
        with torch.no_grad():
            return unet(x, G["in.timestep"].expand(len(x)), told, taps)

    class Sees(Taps):
        def hidden(self, site, h):
            seen[site] = h
            return h

    seen = {}
    plain = predict(Sees())
    request.getfixturevalue("biases_later")
    record = Record([site, other])
    assert golden.relative_error(predict(record), plain) < 1e-5
    for name in (site, other):
        assert golden.relative_error(record.features[name][0], seen[name]) < 1e-5
        # it is far from what it is without
        bias = unet.get_submodule(name).conv2.bias
        assert golden.relative_error(seen[name] - bias, seen[name]) > 1e-3
    shared = predict(ShareSource([site, other], 2), copies=2)
    for branch in shared.split(1):
        assert golden.relative_error(branch, plain) < 1e-5


def test_on_a_gpu_hardly_a_convolution_has_a_bias(editor):
    with fake_mode("cuda") as device, torch.no_grad(), Convolutions() as convolutions:
        twin = editor.backbone.meta_copy(device)
        told = twin.meta_conditions(F, H, W)
        conditioning = convolutions.biased
        twin.predict(torch.empty(1, 4, F, H, W, device=device), 1, told)
    # in, out, and three times half and double the size
    assert convolutions.biased - conditioning == 8 and convolutions.bare > 100


@pytest.mark.parametrize("t", [1, 101, 999])
def test_other_timesteps_equal_the_original(editor, t):
    assert golden.relative_error(run(editor, slice(1, 2), t), G[f"extra.t{t}.out"]) < 1e-5


@pytest.mark.parametrize("fps", [1, 16, 30])
def test_other_frame_rates_equal_the_original(editor, fps):
    out = run(editor, slice(1, 2), fps=torch.tensor([fps]))
    assert golden.relative_error(out, G[f"extra.fps{fps}.out"]) < 1e-5


def test_one_frame_equals_the_original(editor):
    one = slice(0, 1)
    out = run(
        editor,
        slice(1, 2),
        sample=G["in.sample"][1:, :, one],
        image_latents=G["in.image_latents"][1:, :, one],
    )
    assert golden.relative_error(out, G["extra.one_frame.out"]) < 1e-5


def quiet(editor, name):
    """One module on inputs so small that a wrong epsilon in a norm shows."""
    unet = editor.backbone.unet
    x, truth = QUIET[f"{name}.in"], QUIET[f"{name}.out"]
    module = unet.get_submodule(our_name(name))
    with torch.no_grad():
        if x.ndim == 3:  # (h w) f c -> b f (h w) c and back
            return module(x.transpose(0, 1)[None])[0].transpose(0, 1), truth
        tokens = x.permute(0, 2, 3, 1)
        if "resnets" in name:  # time and context differ by frame here: as many branches of one
            out = module(tokens, QUIET["emb"], taps=NO_TAPS)
        elif "temp_convs" in name:
            out = module(tokens, F)
        elif name.endswith("conv_norm_out"):
            out = module(tokens)
        elif "temp_attentions" in name or name == "transformer_in":
            out = module(tokens, F, taps=NO_TAPS)
        else:
            cross = module.block.cross
            context = {cross.site: cross.read(QUIET["context"])}
            out = module(tokens, ForwardContext(QUIET["emb"], context, frames=1), taps=NO_TAPS)
    return out.permute(0, 3, 1, 2), truth


@pytest.mark.parametrize(
    "name", sorted({n[:-3] for n in QUIET if n.endswith(".in") and not n.startswith("vae")})
)
def test_norms_have_the_originals_epsilon(editor, name):
    ours, truth = quiet(editor, name)
    assert golden.relative_error(ours, truth) < 1e-5


def test_the_converter_knows_every_parameter(editor, snapshot):
    from anyv2v.weights.tensors import read_header

    theirs = read_header(snapshot / "unet" / "diffusion_pytorch_model.safetensors")
    ours = {renamed.name for renamed in rename(theirs, UNET).values()}
    assert ours == set(editor.backbone.unet.state_dict())
