"""The video autoencoders of Wan 2.2 and 2.1 against diffusers, live, on random weights."""

import functools

import pytest
import torch

from anyv2v.convert.formats.wan_names import VAE
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.media.image import pixels_of
from anyv2v.vae.causal import RMSNorm
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.vae.video_codec import VideoCodec
from tests.draw import normal, redraw
from tests.oracles.golden import relative_error
from tests.oracles.wan_names import vae_2_1

diffusers = pytest.importorskip("diffusers")
autoencoder_kl_wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

CLOSE = 3e-6
"""Relative error, of which float32 explains what was seen: 1.2e-6 decoding, 3e-7 encoding."""
# base widths of encoder and decoder, their multiples by level, layers, latent channels, temporal
SIZES = {
    "tiny": (8, 12, [1, 2, 4, 4], 2, 6, [False, True, True]),
    "odd": (6, 10, [1, 2, 2, 2], 1, 5, [True, False, True]),
    "wide encoder": (160, 8, [1, 2, 4, 4], 1, 48, [False, True, True]),
    "wide decoder": (8, 256, [1, 2, 4, 4], 1, 48, [False, True, True]),
    "full": (160, 256, [1, 2, 4, 4], 2, 48, [False, True, True]),
    "tiny 2.1": (8, 8, [1, 2, 4, 4], 2, 6, [False, True, True]),
    "full 2.1": (96, 96, [1, 2, 4, 4], 2, 16, [False, True, True]),
}


def oracle(name, device="cpu"):
    down, up, multiples, layers, latent, temporal = SIZES[name]
    patch = 1 if "2.1" in name else 2
    sizes = {
        "base_dim": down,
        "decoder_base_dim": up,
        "z_dim": latent,
        "dim_mult": multiples,
        "num_res_blocks": layers,
        "temperal_downsample": temporal,
        "latents_mean": normal(latent, seed=3).tolist(),
        "latents_std": normal(latent, seed=4).abs().add(0.5).tolist(),
        "is_residual": patch == 2,
        "in_channels": 3 * patch**2,
        "out_channels": 3 * patch**2,
        "patch_size": None if patch == 1 else patch,
        "scale_factor_spatial": patch * 2 ** len(temporal),
    }
    with torch.device(device):
        return diffusers.AutoencoderKLWan(**sizes).eval()


def config_of(theirs):
    config = theirs.config
    return VideoAutoencoderConfig(
        channels=3,
        patch=config.patch_size or 1,
        latent_channels=config.z_dim,
        encoder_channels=tuple(config.base_dim * m for m in config.dim_mult),
        decoder_channels=tuple(config.decoder_base_dim * m for m in config.dim_mult),
        layers=config.num_res_blocks,
        temporal=tuple(config.temperal_downsample),
        residual=config.is_residual,
        mean=tuple(config.latents_mean),
        std=tuple(config.latents_std),
    )


def table(name):
    _, _, widths, layers, _, temporal = SIZES[name]
    return vae_2_1(widths, layers, temporal) if "2.1" in name else VAE


def make(name):
    """Their autoencoder of a size with random weights, and ours on the same values."""
    # without initial values, which take long at full width
    theirs = redraw(oracle(name, "meta").to_empty(device="cpu"), seed=1)
    # decoded pixels stay within -1..1, where they are not clamped
    theirs.decoder.conv_out.weight *= 0.2
    with torch.device("meta"):
        ours = VideoAutoencoder(config_of(theirs))
    shapes, names = ours.state_dict(), rename(theirs.state_dict(), table(name))
    state = {
        names[key].name: value.reshape(shapes[names[key].name].shape)
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state, strict=True, assign=True)
    return theirs, ours.eval()


@pytest.fixture(scope="module")
def pair():
    return functools.cache(make)


def clip(config, frames, height, width, seed=0):
    """A random uint8 clip, (f, h, w, 3), of so many latents in height and width."""
    s, generator = config.spatial_compression, torch.Generator().manual_seed(seed)
    shape = (frames, height * s, width * s, 3)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def check(pair, frames, height, width):
    """Encodes and decodes a clip of so many latents in height and width with both of a pair."""
    theirs, ours = pair
    codec, video = VideoCodec(ours, 2), clip(ours.config, frames, height, width)
    mean = torch.tensor(theirs.config.latents_mean)[:, None, None, None]
    std = torch.tensor(theirs.config.latents_std)[:, None, None, None]

    truth = (theirs.encode(pixels_of(video).transpose(0, 1)[None]).latent_dist.mode() - mean) / std
    latents = torch.cat(list(codec.encode(video)), 2)
    assert relative_error(latents, truth) <= CLOSE

    noise = normal(*latents.shape, seed=2)
    truth = theirs.decode(noise * std + mean).sample[0].transpose(0, 1)
    assert truth.abs().max() < 1, "diffusers has clamped it"
    assert relative_error(torch.cat(list(codec.decode(noise))), truth) <= CLOSE


@pytest.mark.parametrize(
    "name, frames, height, width",
    [
        ("tiny", 1, 3, 2),
        ("tiny", 5, 1, 2),
        ("tiny", 9, 2, 1),
        ("tiny", 17, 2, 3),
        ("odd", 9, 1, 2),
        ("tiny 2.1", 9, 3, 2),
    ],
)
@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_by_diffusers(pair, name, frames, height, width):
    check(pair(name), frames, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide encoder", "wide decoder"])
@torch.no_grad()
def test_at_full_width(name):
    check(make(name), 5, 1, 2)


@torch.no_grad()
def test_posterior_equals_that_of_diffusers(pair):
    theirs, ours = pair("tiny")
    pixels = pixels_of(clip(ours.config, 5, 2, 2)).transpose(0, 1)[None]
    truth, past = theirs.encode(pixels).latent_dist, {}
    pieces = [ours.posterior(piece, past) for piece in pixels.split([1, 4], dim=2)]
    mean, log_variance = (torch.cat(parts, 2) for parts in zip(*pieces, strict=True))
    assert relative_error(mean, truth.mean) <= CLOSE
    assert relative_error(log_variance, truth.logvar) <= CLOSE
    # a sample of one latent frame is drawn as there
    (sample,) = VideoCodec(ours, 2).encode(
        clip(ours.config, 1, 2, 2), generator=torch.Generator().manual_seed(7)
    )
    alone = theirs.encode(pixels_of(clip(ours.config, 1, 2, 2)).transpose(0, 1)[None]).latent_dist
    drawn = alone.sample(torch.Generator().manual_seed(7))
    assert relative_error(sample, ours.normalize(drawn)) <= CLOSE


@pytest.mark.parametrize("length", [0, 1e-16, 1e-13, 1e-12, 2e-12, 1e-6, 1, 1e6])
def test_short_vectors_are_normalized_as_by_diffusers(length):
    """An epsilon inside the root would show below 1e-3 (1e-6), or at 1e-12 (1e-24)."""
    theirs = autoencoder_kl_wan.WanRMS_norm(12, images=False)
    theirs.gamma.data = normal(12, 1, 1, 1)
    ours = RMSNorm(12)
    ours.weight.data = theirs.gamma.data.flatten()
    x = torch.nn.functional.normalize(normal(1, 2, 3, 4, 12, seed=1), dim=-1) * length
    truth = theirs(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    assert torch.allclose(ours(x), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name, tensors, parameters, encoder, decoder",
    [
        ("full", 196, 704_688_668, 149_627_776, 555_049_228),
        ("full 2.1", 194, 126_892_531, 53_595_872, 73_295_331),
    ],
)
def test_names_and_shapes_at_full_size(name, tensors, parameters, encoder, decoder):
    theirs = oracle(name, "meta")
    with torch.device("meta"):
        ours = VideoAutoencoder(config_of(theirs))
    shapes = {key: tuple(x.shape) for key, x in theirs.state_dict().items()}
    state = ours.state_dict()
    assert len(shapes) == len(state) == tensors
    for network, number in ((ours, parameters), (ours.encoder, encoder), (ours.decoder, decoder)):
        assert sum(x.numel() for x in network.parameters()) == number
    renamed = rename(shapes, table(name))
    assert {new.name for new in renamed.values()} == set(state)
    assert unused_rules(shapes, table(name)) == []
    for ours_name, new in rename(state, table(name), to="theirs").items():
        assert renamed[new.name].name == ours_name
        assert new.their_shape(tuple(state[ours_name].shape)) == shapes[new.name]
