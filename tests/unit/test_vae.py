"""The autoencoder against the original's."""

import pytest
import torch

from anyv2v.backbones.i2vgen.backbone import image_latents
from anyv2v.injection.taps import NO_TAPS
from anyv2v.media.image import to_frames, to_pixels
from anyv2v.nn.resnet import Conv2d
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
    bare = lambda self, x: (self._convolved(x, None), self.bias)  # noqa: E731
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
    from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig

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
