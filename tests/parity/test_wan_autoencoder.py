"""The video autoencoders of Wan 2.2 and 2.1 against diffusers, live, on random weights."""

import pytest
import torch

from anyv2v.convert.rename import rename, unused_rules
from anyv2v.media.image import pixels_of
from anyv2v.vae.causal import RMSNorm
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.vae.video_codec import VideoCodec
from tests.draw import normal, redraw
from tests.oracles.golden import relative_error
from tests.oracles.wan_vae_names import WAN_2_2, wan_2_1

diffusers = pytest.importorskip("diffusers")
autoencoder_kl_wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

# base widths of encoder and decoder, their multiples by level, layers, latent channels, temporal
SIZES = {
    "tiny": (8, 12, [1, 2, 4, 4], 2, 6, [False, True, True]),
    "odd": (6, 10, [1, 2, 2, 2], 1, 5, [True, False, True]),
    "full": (160, 256, [1, 2, 4, 4], 2, 48, [False, True, True]),
    "tiny 2.1": (8, 8, [1, 2, 4, 4], 2, 6, [False, True, True]),
    "full 2.1": (96, 96, [1, 2, 4, 4], 2, 16, [False, True, True]),
}


def oracle(name):
    down, up, multiples, layers, latent, temporal = SIZES[name]
    patch = 1 if "2.1" in name else 2
    return diffusers.AutoencoderKLWan(
        base_dim=down,
        decoder_base_dim=up,
        z_dim=latent,
        dim_mult=multiples,
        num_res_blocks=layers,
        temperal_downsample=temporal,
        latents_mean=normal(latent, seed=3).tolist(),
        latents_std=normal(latent, seed=4).abs().add(0.5).tolist(),
        is_residual=patch == 2,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        patch_size=None if patch == 1 else patch,
        scale_factor_spatial=patch * 2 ** len(temporal),
    ).eval()


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
    return wan_2_1(len(SIZES[name][2]), SIZES[name][3]) if "2.1" in name else WAN_2_2


@pytest.fixture(scope="module")
def pair():
    """Their autoencoder of a size with random weights, and ours on the same values."""
    made = {}

    def get(name):
        if name not in made:
            theirs = redraw(oracle(name), seed=1)
            with torch.no_grad():
                # the decoded pixels stay within -1..1, where they are not clamped
                theirs.decoder.conv_out.weight *= 0.2
            with torch.device("meta"):
                ours = VideoAutoencoder(config_of(theirs))
            shapes = {key: x.shape for key, x in ours.state_dict().items()}
            names = rename(theirs.state_dict(), table(name))
            state = {
                names[key].name: value.reshape(shapes[names[key].name])
                for key, value in theirs.state_dict().items()
            }
            ours.load_state_dict(state, strict=True, assign=True)
            made[name] = theirs, ours.eval()
        return made[name]

    return get


def clip(config, frames, height, width, seed=0):
    """A random uint8 clip, (f, h, w, 3), of so many latents in height and width."""
    s, generator = config.spatial_compression, torch.Generator().manual_seed(seed)
    shape = (frames, height * s, width * s, 3)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["tiny", "odd", "tiny 2.1"])
@pytest.mark.parametrize("frames, height, width", [(1, 3, 2), (5, 1, 2), (9, 2, 1), (17, 2, 3)])
@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_by_diffusers(pair, name, frames, height, width):
    theirs, ours = pair(name)
    codec, video = VideoCodec(ours, 2), clip(ours.config, frames, height, width)
    mean = torch.tensor(theirs.config.latents_mean)[:, None, None, None]
    std = torch.tensor(theirs.config.latents_std)[:, None, None, None]

    truth = (theirs.encode(pixels_of(video).transpose(0, 1)[None]).latent_dist.mode() - mean) / std
    latents = torch.cat(list(codec.encode(video)), 2)
    print("encode", relative_error(latents, truth))
    assert relative_error(latents, truth) <= 1e-5

    noise = normal(*latents.shape, seed=2)
    truth = theirs.decode(noise * std + mean).sample[0].transpose(0, 1)
    assert truth.abs().max() < 1
    pixels = torch.cat(list(codec.decode(noise)))
    print("decode", relative_error(pixels, truth))
    assert relative_error(pixels, truth) <= 1e-5
