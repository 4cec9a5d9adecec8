"""The autoencoder against the original's."""

import pytest
import torch

from anyv2v.backbones.i2vgen.backbone import image_latents
from anyv2v.errors import InputError
from anyv2v.injection.taps import NO_TAPS
from anyv2v.media.image import to_frames, to_pixels
from anyv2v.nn.resnet import Conv2d
from anyv2v.runtime.accounting import count, fake_mode
from anyv2v.runtime.meta import meta_copy
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.vae.codec import ImageCodec
from tests.oracles import golden

G = golden.tensors("vae")
QUIET = golden.tensors("quiet_modules")


@pytest.fixture(scope="module")
def vae(editor):
    return editor.backbone.codec.vae


@torch.no_grad()
def test_posterior_equals_the_original(vae):
    mean, log_variance = vae.posterior(G["pixels"])
    assert golden.relative_error(mean, G["encode.mean"]) < 1e-5
    assert torch.equal(log_variance, G["encode.logvar"])  # all clamped to -30


@torch.no_grad()
def test_decoding_equals_the_original(vae, editor):
    latents = G["video_latents"]
    pixels = vae.decode(latents[0].transpose(0, 1))
    assert golden.relative_error(pixels, G["decode"][0].transpose(0, 1)) < 1e-5
    noise = golden.tensors("inputs")["noise"]
    pixels = vae.decode(noise[0].transpose(0, 1))
    assert golden.relative_error(pixels, G["decode.noise"][0].transpose(0, 1)) < 1e-5
    difference = editor.decode(latents).astype(int) - G["decode.frames"].numpy().astype(int)
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3


@torch.no_grad()
def test_biases_added_later_equal_the_original(vae, monkeypatch):
    """As on a GPU: biases are not the convolutions' business."""
    bare = lambda self, x: (self._convolve(x, None), self.bias)  # noqa: E731
    monkeypatch.setattr(Conv2d, "before_bias", bare)
    assert golden.relative_error(vae.posterior(G["pixels"])[0], G["encode.mean"]) < 1e-5
    pixels = vae.decode(G["video_latents"][0].transpose(0, 1))
    assert golden.relative_error(pixels, G["decode"][0].transpose(0, 1)) < 1e-5


def test_frames_are_encoded_as_the_original_encodes_a_video(editor, video):
    assert torch.equal(to_pixels(video.frames), G["pixels"])
    assert golden.relative_error(editor.encode_frames(video.frames), G["video_latents"]) < 1e-5


def test_image_latents_hold_the_place_in_time(editor, video):
    first = editor.encode_frames(video.frames[:1])
    for frames, name in ((4, "cfg1"), (1, "one_frame")):
        truth = G[f"image_latents.{name}"]
        assert golden.relative_error(image_latents(first, frames), truth) < 1e-5


@torch.no_grad()
def test_a_sample_of_the_posterior_has_its_mean_and_deviation():
    torch.manual_seed(0)
    vae = Autoencoder(AutoencoderConfig(3, 4, (8, 8), 1, 4, 2.0)).eval()
    pixels = torch.randn(1, 3, 8, 8)
    mean, log_variance = vae.posterior(pixels)
    generator = torch.Generator().manual_seed(1)
    samples = torch.stack([vae.encode(pixels, generator) for _ in range(2000)]) / 2.0
    deviation = torch.exp(0.5 * log_variance)
    assert ((samples.mean(0) - mean) / deviation).abs().max() < 0.1
    assert (samples.std(0) / deviation - 1).abs().max() < 0.1
    assert torch.equal(vae.encode(pixels), mean * 2.0)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@torch.no_grad()
def test_norms_have_the_originals_epsilon(vae, half):
    mid = getattr(vae, half).mid
    name = f"vae.{half}.mid_block"
    x = QUIET[f"{name}.in"].permute(0, 2, 3, 1)
    for module, out in (
        (lambda x: mid.res[0](x, taps=NO_TAPS), "resnets.0"),
        (mid.attention, "attentions.0"),
    ):
        truth = QUIET[f"{name}.{out}.out"]
        assert golden.relative_error(module(x).permute(0, 3, 1, 2), truth) < 1e-5


def test_frames_round_half_to_even():
    # the one half that survives the way to -1..1 and back exactly; rounding up would give 255
    pixels = torch.full((1, 3, 1, 1), 254.5 / 255 * 2 - 1)
    assert (pixels / 2 + 0.5).mul(255).unique().tolist() == [254.5]
    assert to_frames(pixels).flatten().tolist() == [254] * 3


def test_samples_are_drawn_frame_by_frame_however_many_are_computed_together(editor, video):
    frames, codec = torch.from_numpy(video.frames[:2, :32, :32].copy()), editor.backbone.codec

    def sampled(at_once):
        return torch.cat([*codec.encode(frames, at_once, torch.Generator().manual_seed(2))], dim=2)

    with torch.no_grad():
        assert torch.equal(sampled(1), sampled(2))


# sizes, layouts and limits


def tiny(level_channels=(8, 8, 16), scaling=0.5, layers=1):
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(3, 4, level_channels, layers, 4, scaling)).eval()


@pytest.mark.parametrize("scaling", [1e-4, 0.18215, 1.0, 1e4])
def test_latents_may_be_scaled(scaling):
    assert tiny(scaling=scaling).config.scaling_factor == scaling


@pytest.mark.parametrize("scaling", [0, -1.0, 0.99e-4, 1.01e4, float("inf"), float("nan")])
def test_latents_that_could_not_stay_finite(scaling):
    with pytest.raises(InputError, match=f"vae: scaling_factor {scaling} is not in 1e-4..1e4"):
        AutoencoderConfig(3, 4, (8, 8), 1, 4, scaling)


@pytest.mark.parametrize(
    "level_channels, dtype, device",
    [
        ((32, 64, 64), torch.float32, "cpu"),
        ((16, 16), torch.float16, "cuda"),
        ((64, 128), torch.bfloat16, "cpu"),
    ],
)
def test_a_picture_needs_about_as_much_as_is_said(level_channels, dtype, device):
    """At least so much of what encoding and decoding take at one time, and not half of it."""
    with torch.device("meta"):
        vae = Autoencoder(AutoencoderConfig(3, 4, level_channels, 2, 8, 0.2)).to(dtype).eval()
    factor, height, width = 2 ** (len(level_channels) - 1), 32, 64
    assert vae.config.spatial_compression == factor
    with fake_mode(device) as place:
        vae = meta_copy(vae, place)
        pixels = torch.empty(1, 3, height, width, dtype=dtype, device=place)
        latents = torch.empty(1, 4, height // factor, width // factor, dtype=dtype, device=place)
        peaks = [count(lambda: vae.encode(pixels)), count(lambda: vae.decode(latents))]
        told = vae.activation_bytes(height, width)
        assert ImageCodec(vae).activation_bytes(height, width) == told
    for peak in peaks:
        assert told <= peak.peak_bytes < 2 * told


@torch.no_grad()
def test_features_lie_channels_last_from_end_to_end():
    """What lies otherwise is not for our kernels, and costs copies; the values are the same."""
    vae, odd = tiny(layers=2), []

    def look(module, given):
        odd.extend(f"{module}: {x.stride()}" for x in given if not x.is_contiguous())

    hooks = [m.register_forward_pre_hook(look) for m in vae.modules() if not list(m.children())]
    pixels = torch.randn(2, 3, 16, 24)
    for given in (pixels, pixels.to(memory_format=torch.channels_last), pixels.mT.contiguous().mT):
        latents = vae.encode(given)
        for x in (latents, latents.to(memory_format=torch.channels_last)):
            vae.decode(x)
    assert len(hooks) > 40 and odd == []


@torch.no_grad()
def test_frames_become_latents_alike_one_by_one_and_together():
    """In the order of time, float32, by the codec's own scale; and back."""
    vae = tiny(scaling=3.0)
    codec = ImageCodec(vae)
    frames = torch.randint(0, 256, (5, 8, 12, 3), dtype=torch.uint8)
    one = torch.cat([vae.encode(to_pixels(frame[None].numpy())) for frame in frames])
    mean, _ = vae.posterior(to_pixels(frames.numpy()))
    assert torch.allclose(one, 3.0 * mean, atol=1e-5)
    for at_once in (1, 2, 5, 9):
        pieces = list(codec.encode(frames, at_once))
        assert [p.shape[2] for p in pieces] == [len(c) for c in frames.split(at_once)]
        latents = torch.cat(pieces, dim=2)
        assert latents.dtype == torch.float32
        assert latents.shape == (1, *codec.shape(5, 8, 12)) == (1, 4, 5, 2, 3)
        assert torch.allclose(latents[0].transpose(0, 1), one, atol=1e-5)
        back = torch.cat(list(codec.decode(latents, at_once)))
        assert torch.allclose(back, vae.decode(one), atol=1e-5)
    assert (codec.channels, codec.spatial_compression, codec.size_multiple) == (4, 4, 4)
    assert codec.check_frames(7) == codec.frames_of(7) == 7 and codec.encoder is vae.encoder
    half = ImageCodec(tiny().bfloat16())
    (latents,) = half.encode(frames, 5)
    assert latents.dtype == torch.float32
    (pixels,) = half.decode(latents, 5)
    assert pixels.dtype == torch.bfloat16
