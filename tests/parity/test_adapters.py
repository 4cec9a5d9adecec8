"""IP-Adapter and T2I-Adapter against diffusers, live, on random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.config import section
from anyv2v.convert.formats import adapters, stable_diffusion
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.media.image import to_pixels
from anyv2v.stable_diffusion.adapters import load_ip_adapter, load_t2i_adapter
from anyv2v.stable_diffusion.config import UNet2DConfig
from anyv2v.stable_diffusion.ip_adapter import (
    BLOCKS,
    SITES,
    IPAdapterConfig,
    IPAdapterNetwork,
    image_context,
    pixels_of,
    scales,
)
from anyv2v.stable_diffusion.loading import load
from anyv2v.stable_diffusion.painting import Painting, paint
from anyv2v.stable_diffusion.t2i_adapter import T2IAdapterConfig, T2IAdapterNetwork
from anyv2v.stable_diffusion.unet import UNet2D, cross_sites
from anyv2v.weights_folders import expected_shapes
from tests.draw import normal, redraw
from tests.oracles import adapter_snapshot, sd_snapshot
from tests.oracles.golden import relative_error

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pipeline_stable_diffusion_img2img = pytest.importorskip(
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
)

SIZES = adapter_snapshot.IP_PRESETS["tiny"]
WIDTHS, CONTEXT = SIZES["widths"], SIZES["context"]
T2I_PRESETS = adapter_snapshot.T2I_PRESETS


def carry(state, table, ours):
    """Their tensors under our names, into a network of ours; every rule is needed."""
    assert unused_rules(state, table) == []
    shapes = {name: tuple(x.shape) for name, x in ours.state_dict().items()}
    renamed = rename(state, table)
    for name, new in renamed.items():
        assert tuple(state[name].shape) == new.their_shape(shapes[new.name]), name
    state = {new.name: state[name].reshape(shapes[new.name]) for name, new in renamed.items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval().requires_grad_(False)


def both_adapters(name):
    """The same random weights in both networks, ours by the config that conversion makes."""
    config = adapter_snapshot.t2i_adapter_config(name)
    theirs = diffusers.T2IAdapter.from_config(config).eval().requires_grad_(False)
    state = adapter_snapshot.draw(adapter_snapshot.t2i_adapter_shapes(name))
    theirs.load_state_dict(state, strict=True)
    sizes = adapters.t2i_adapter_config(name, config)
    with torch.device("meta"):
        ours = T2IAdapterNetwork(section({"adapter": sizes}, "adapter", T2IAdapterConfig))
    return carry(state, adapters.T2I_NAMES[sizes["kind"]], ours), theirs


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "odd",
        "tiny light",
        "odd light",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("canny", "depth", "color")),
    ],
)
@torch.no_grad()
def test_t2i_adapter(name):
    ours, theirs = both_adapters(name)
    _, channels, widths, _, factor = T2I_PRESETS[name]
    # 5 and 7 are halved to 3 and 4, 2 and 2: a mean of what is there at the edges
    picture = normal(2, channels, 5 * factor, 7 * factor).abs().clamp(max=1)
    truth, found = theirs(picture), ours(picture)
    assert len(found) == len(truth) == len(widths) + (name in ("tiny light", "odd light", "color"))
    for feature, true in zip(found, truth, strict=True):
        error = relative_error(feature.permute(0, 3, 1, 2), true)
        print(f"{name}: {error:.1e}")
        assert error <= 1e-5


def both_unets():
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=WIDTHS,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT,
        norm_num_groups=8,
    )
    redraw(theirs, seed=1)
    config = UNet2DConfig(4, 4, WIDTHS, (True, True, True, False), 2, 8, CONTEXT, 8)
    with torch.device("meta"):
        ours = UNet2D(config)
    return carry(theirs.state_dict(), stable_diffusion.UNET, ours), theirs


def our_ip_adapter(state):
    config = adapters.ip_adapter_config("file", {k: tuple(x.shape) for k, x in state.items()})
    with torch.device("meta"):
        ours = IPAdapterNetwork(section({"adapter": config}, "adapter", IPAdapterConfig))
    return carry(state, adapters.IP_NAMES, ours)


class TheirPipeline(diffusers.loaders.IPAdapterMixin):
    """As much of a pipeline as setting the scales takes."""

    unet_name = "unet"

    def __init__(self, unet):
        self.unet = unet


@pytest.fixture(scope="module")
def ip_adapter():
    """Our UNet and adapter, and their UNet with the same adapter loaded by their own loader."""
    unet, theirs = both_unets()
    state = adapter_snapshot.draw(adapter_snapshot.ip_adapter_shapes())
    theirs._load_ip_adapter_weights([adapter_snapshot.nested(state)])
    return unet, our_ip_adapter(state), theirs.eval()


# the blocks as diffusers calls them, for its own setter of scales
THEIR_BLOCKS = {
    "all": 0.7,
    "style": {"up": {"block_1": [0.7] * 3}},
    "style+layout": {
        "down": {"block_2": [0.7] * 2},
        "mid": 0.7,
        "up": {"block_1": [0.7] * 3},
    },
}


@pytest.mark.parametrize("blocks", BLOCKS)
@torch.no_grad()
def test_ip_adapter(ip_adapter, blocks):
    unet, ours, theirs = ip_adapter
    x, text, t = normal(2, 4, 8, 9), normal(2, 7, CONTEXT, seed=1), torch.tensor([501, 501])
    # without a picture, and with one
    embedding = torch.cat([torch.zeros(1, 20), normal(1, 20, seed=2)])
    given = {"added_cond_kwargs": {"image_embeds": [embedding[:, None]]}}
    TheirPipeline(theirs).set_ip_adapter_scale(0.0)
    TheirPipeline(theirs).set_ip_adapter_scale(THEIR_BLOCKS[blocks])
    truth = theirs(x, t, text, **given).sample
    context = unet.read(text)
    image = image_context(ours.read(ours(embedding), heads=8), scales(blocks, 0.7))
    found = unet(x, t, context, image)
    error = relative_error(found, truth)
    effect = relative_error(unet(x, t, context), truth)
    print(f"{blocks}: {error:.1e}, effect {effect:.1e}")
    assert error <= 1e-5
    assert effect > 0.03
    assert relative_error(found - unet(x, t, context), truth - unet(x, t, context)) <= 1e-4


@torch.no_grad()
def test_an_ip_adapter_of_no_scale_is_none(ip_adapter):
    unet, ours, theirs = ip_adapter
    x, text, t = normal(1, 4, 8, 8), normal(1, 7, CONTEXT, seed=1), torch.tensor([1])
    embedding = normal(1, 20)
    TheirPipeline(theirs).set_ip_adapter_scale(0.0)
    given = {"added_cond_kwargs": {"image_embeds": [embedding[:, None]]}}
    image = image_context(ours.read(ours(embedding), heads=8), scales("all", 0.0))
    found = unet(x, t, unet.read(text), image)
    assert relative_error(found, theirs(x, t, text, **given).sample) <= 1e-5
    assert torch.equal(found, unet(x, t, unet.read(text)))


def test_ip_adapter_is_at_the_unets_own_sites(ip_adapter):
    unet, ours, _ = ip_adapter
    assert set(cross_sites(unet)) == set(SITES)
    named = {name.rpartition(".")[0] for name in ours.state_dict()}
    assert {site.rpartition(".")[0] for site in named if "cross" in site} == set(SITES)


@pytest.mark.parametrize("name", ["tiny", "tiny light"])
@torch.no_grad()
def test_t2i_adapter_in_the_unet(name):
    unet, theirs = both_unets()
    ours, their_net = both_adapters(name)
    picture = normal(1, T2I_PRESETS[name][1], 64, 72, seed=3).abs().clamp(max=1)
    x, text, t = normal(2, 4, 8, 9), normal(2, 7, CONTEXT, seed=1), torch.tensor([501, 501])
    scale = 0.8
    given = [torch.cat([feature * scale] * 2) for feature in their_net(picture)]
    truth = theirs(x, t, text, down_intrablock_additional_residuals=given).sample
    residuals = [torch.cat([feature * scale] * 2) for feature in ours(picture)]
    context = unet.read(text)
    error = relative_error(unet(x, t, context, residuals=residuals), truth)
    effect = relative_error(unet(x, t, context), truth)
    print(f"{name}: {error:.1e}, effect {effect:.1e}")
    assert error <= 1e-5
    assert effect > 0.03


# pictures, and whole pipelines

TRAINED = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
)


def photo(h, w, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("h, w", [(224, 224), (300, 517), (431, 101), (29, 40)])
def test_the_picture_that_clip_sees(h, w):
    image = photo(h, w)
    theirs = transformers.CLIPImageProcessorPil()
    truth = theirs(Image.fromarray(image), return_tensors="pt").pixel_values
    config = PreprocessConfig(224, tuple(theirs.image_mean), tuple(theirs.image_std))
    assert relative_error(pixels_of(image, config), truth) <= 1e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stable Diffusion and both adapters, as they are published, and ours."""
    at = tmp_path_factory.mktemp("pipelines")
    sd_snapshot.write(at / "sd", channels_in=4)
    file = adapter_snapshot.write_ip_adapter(at / "ip")
    adapter_snapshot.write_t2i_adapter(at / "t2i", "tiny light")
    for src, name in ((at / "sd", "sd"), (file, "ip"), (at / "t2i", "t2i")):
        convert(src, at / f"our {name}", expected_shapes)
    return at


def their_pipeline(cls, folders, **parts):
    pipe = cls.from_pretrained(folders / "sd", **parts)
    pipe.scheduler = diffusers.DDIMScheduler(
        **TRAINED, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def our_model(folders):
    return load(folders / "our sd", torch.device("cpu"), torch.float32, in_channels=4)


def check_picture(ours, theirs):
    ours = (ours / 2 + 0.5).clamp(0, 1)
    assert theirs.std() > 0.05
    error = relative_error(ours, theirs)
    print(f"picture {error:.1e}")
    assert error <= 1e-4


@torch.no_grad()
def test_ip_adapters_whole_pipeline(folders, monkeypatch):
    """From a frame and a reference, through the vision tower, to the picture."""
    frame, reference, noise = photo(64, 72), photo(50, 90, seed=1), normal(1, 4, 8, 9)
    module = pipeline_stable_diffusion_img2img
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)
    # diffusers draws the frame's latents, we take their mean
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mean)
    pipe = their_pipeline(
        diffusers.StableDiffusionImg2ImgPipeline,
        folders,
        image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(
            folders / "ip" / "image_encoder"
        ),
        feature_extractor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    state = adapter_snapshot.draw(adapter_snapshot.ip_adapter_shapes())
    pipe.unet._load_ip_adapter_weights([adapter_snapshot.nested(state)])
    pipe.set_ip_adapter_scale(THEIR_BLOCKS["style+layout"])
    truth = pipe(
        prompt="a robot",
        negative_prompt="a dog",
        image=Image.fromarray(frame),
        ip_adapter_image=Image.fromarray(reference),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=7.5,
        output_type="pt",
    ).images
    model = our_model(folders)
    network, tokens = load_ip_adapter(folders / "our ip", reference, model.device, model.dtype)
    read = network.read(tokens, model.unet.config.heads)
    how, pixels = Painting(10, 0.6, 7.5, "a dog"), to_pixels(frame[None])
    image = image_context(read, scales("style+layout", 0.7))
    check_picture(paint(model, pixels, "a robot", noise, how, image), truth)
    plain = paint(model, pixels, "a robot", noise, how)
    assert relative_error((plain / 2 + 0.5).clamp(0, 1), truth) > 1e-3


@torch.no_grad()
def test_t2i_adapters_whole_pipeline(folders):
    noise, condition = normal(1, 4, 8, 8), photo(64, 64)
    pipe = their_pipeline(
        diffusers.StableDiffusionAdapterPipeline,
        folders,
        adapter=diffusers.T2IAdapter.from_pretrained(folders / "t2i"),
    )
    truth = pipe(
        prompt="a robot",
        image=Image.fromarray(condition),
        latents=noise,
        num_inference_steps=10,
        guidance_scale=7.5,
        adapter_conditioning_scale=0.8,
        output_type="np",
    ).images
    model = our_model(folders)
    network = load_t2i_adapter(folders / "our t2i", model.device, model.dtype)
    shown = torch.from_numpy(condition).permute(2, 0, 1)[None] / 255
    residuals = [0.8 * feature for feature in network(shown)]
    pixels = to_pixels(photo(64, 64, seed=1)[None])
    how = Painting(10, 1.0, 7.5)
    truth = torch.from_numpy(truth).permute(0, 3, 1, 2)
    check_picture(paint(model, pixels, "a robot", noise, how, None, residuals), truth)
    plain = paint(model, pixels, "a robot", noise, how)
    assert relative_error((plain / 2 + 0.5).clamp(0, 1), truth) > 1e-3
