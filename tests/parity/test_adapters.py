"""IP-Adapter and T2I-Adapter against diffusers, live, on random weights."""

import json

import diffusers
import pytest
import torch

from anyv2v.convert import adapters, stable_diffusion
from anyv2v.convert.rename import rename, unused
from anyv2v.stable_diffusion.config import UNet2DConfig
from anyv2v.stable_diffusion.ip_adapter import (
    BLOCKS,
    SITES,
    IPAdapterConfig,
    IPAdapterNetwork,
    image_context,
    scales,
)
from anyv2v.stable_diffusion.t2i_adapter import T2IAdapterConfig, T2IAdapterNetwork
from anyv2v.stable_diffusion.unet import UNet2D, cross_sites
from tests.golden import relative_error

TINY = ((16, 32, 48, 48), 24)
FULL = ((320, 640, 1280, 1280), 768)
SIZES = {"tiny": TINY, "full": FULL}

# kind, channels of the picture, widths, blocks per level, pixels per latent
ADAPTERS = {
    "tiny": ("full", 1, (16, 32, 48, 48), 2, 8),
    "odd": ("full", 3, (12, 20, 20), 3, 4),
    "tiny light": ("light", 3, (16, 32, 48, 48), 4, 8),
    "odd light": ("light", 1, (8, 20, 20), 1, 2),
    "canny": ("full", 1, (320, 640, 1280, 1280), 2, 8),
    "depth": ("full", 3, (320, 640, 1280, 1280), 2, 8),
    "color": ("light", 3, (320, 640, 1280, 1280), 4, 8),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(network, seed):
    """Every tensor anew, so that none is zero or one and none is alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.normal_(generator=generator)
            if value.ndim == 1:
                value.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                value.mul_(value[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


def carry(state, table, ours):
    """Their tensors under our names, into a network of ours; every rule is needed."""
    assert unused(state, table) == []
    shapes = {name: tuple(x.shape) for name, x in ours.state_dict().items()}
    renamed = rename(state, table)
    for name, new in renamed.items():
        assert tuple(state[name].shape) == new.their_shape(shapes[new.name]), name
    state = {new.name: state[name].reshape(shapes[new.name]) for name, new in renamed.items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval().requires_grad_(False)


def their_adapter(kind, channels, widths, layers, factor):
    theirs = diffusers.T2IAdapter(
        in_channels=channels,
        channels=list(widths if kind == "full" else widths[:-1]),
        num_res_blocks=layers,
        downscale_factor=factor,
        adapter_type=f"{kind}_adapter",
    )
    return redraw(theirs, seed=2)


def both_adapters(name):
    """The same random weights in both networks, ours by the config that conversion makes."""
    theirs = their_adapter(*ADAPTERS[name])
    config = adapters.t2i_adapter_config(name, json.loads(theirs.to_json_string()))
    with torch.device("meta"):
        ours = T2IAdapterNetwork(T2IAdapterConfig(**config))
    return carry(theirs.state_dict(), adapters.T2I_ADAPTERS[config["kind"]], ours), theirs


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
    _, channels, widths, _, factor = ADAPTERS[name]
    # 5 and 7 are halved to 3 and 4, 2 and 2: a mean of what is there at the edges
    picture = normal(2, channels, 5 * factor, 7 * factor).abs().clamp(max=1)
    truth, found = theirs(picture), ours(picture)
    assert len(found) == len(truth) == len(widths)
    for feature, true, width in zip(found, truth, widths, strict=True):
        assert feature.shape[-1] == width
        error = relative_error(feature.permute(0, 3, 1, 2), true)
        print(f"{name}: {error:.1e}")
        assert error <= 1e-5


def both_unets(size, seed=1):
    widths, context = SIZES[size]
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=widths,
        attention_head_dim=8,
        cross_attention_dim=context,
        norm_num_groups=8,
    )
    redraw(theirs, seed)
    config = UNet2DConfig(4, 4, widths, (True, True, True, False), 2, 8, context, 8)
    with torch.device("meta"):
        ours = UNet2D(config)
    return carry(theirs.state_dict(), stable_diffusion.UNET, ours), theirs


def random_ip_adapter(widths, context, image_width=20, tokens=4, dtype=torch.float32):
    """The tensors of a published file, by name: the number of an attention, then its width."""
    down = {number: widths[(number - 1) // 4] for number in range(1, 12, 2)}
    up = {number: widths[2 - (number - 13) // 6] for number in range(13, 30, 2)}
    shapes = {
        "image_proj.proj.weight": (tokens * context, image_width),
        "image_proj.proj.bias": (tokens * context,),
        "image_proj.norm.weight": (context,),
        "image_proj.norm.bias": (context,),
    }
    for number, width in {**down, **up, 31: widths[-1]}.items():
        shapes |= {f"ip_adapter.{number}.to_{x}_ip.weight": (width, context) for x in "kv"}
    state = {}
    for i, (name, shape) in enumerate(shapes.items()):
        x = normal(*shape, seed=1000 + i)
        state[name] = (x * shape[1] ** -0.5 if len(shape) == 2 else 1 + 0.2 * x).to(dtype)
    return state


def nested(state):
    """As a .bin file has it, and diffusers' loader wants it."""
    groups = {}
    for name, x in state.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = x
    return groups


def our_ip_adapter(state):
    config = adapters.ip_adapter_config("file", {k: tuple(x.shape) for k, x in state.items()})
    with torch.device("meta"):
        ours = IPAdapterNetwork(IPAdapterConfig(**config))
    return carry(state, adapters.IP_ADAPTER, ours)


class TheirPipeline(diffusers.loaders.IPAdapterMixin):
    """As much of a pipeline as setting the scales takes."""

    unet_name = "unet"

    def __init__(self, unet):
        self.unet = unet


@pytest.fixture(scope="module")
def ip_adapter():
    """Our UNet and adapter, and their UNet with the same adapter loaded by their own loader."""
    unet, theirs = both_unets("tiny")
    state = random_ip_adapter(*TINY)
    theirs._load_ip_adapter_weights([nested(state)])
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
    x, text, t = normal(2, 4, 8, 9), normal(2, 7, 24, seed=1), torch.tensor([501, 501])
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
    x, text, t = normal(1, 4, 8, 8), normal(1, 7, 24, seed=1), torch.tensor([1])
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
    unet, theirs = both_unets("tiny")
    ours, their_net = both_adapters(name)
    picture = normal(1, ADAPTERS[name][1], 64, 72, seed=3).abs().clamp(max=1)
    x, text, t = normal(2, 4, 8, 9), normal(2, 7, 24, seed=1), torch.tensor([501, 501])
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
