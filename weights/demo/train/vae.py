"""Training of the autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from anyv2v.config import section
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.weights.demo.recipe import Preset, config
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_scene
from anyv2v.weights.demo.train.muon import optimizer
from anyv2v.weights.demo.train.run import Run

KL = 2e-4
"""Weight, in the loss, of the KL divergence of the latents from a standard normal distribution."""


def build(preset: Preset) -> Autoencoder:
    """Builds the demo model's autoencoder, untrained, with the sizes of `preset`."""
    return Autoencoder(section(config(preset), "vae", AutoencoderConfig))


def train_vae(run: Run, preset: Preset, trained: Autoencoder | None = None) -> Autoencoder:
    """Trains an autoencoder until the time of `run` is over, and returns it.

    trained: an autoencoder of which only the decoder is trained further, so that its latents stay
    as they are; None, the default, trains a new one.
    """
    vae = trained or build(preset).to(run.device)
    named = dict(vae.requires_grad_(True).named_parameters())
    if trained:
        named = {k: p for k, p in named.items() if k.startswith(("decoder.", "post_quant_conv."))}
    run.begin({"vae": vae}, optimizer(named.items(), preset.rate, preset.matrix_rate))
    while run.tick():
        pixels = _pixels(preset, run)
        with torch.no_grad() if trained else torch.enable_grad():
            mean, log_variance = vae.posterior(pixels)
        log_variance = log_variance.clamp(min=-12)
        noise = torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        # a decoder that is trained alone is made for what the UNet gives: near the means
        error = vae.decode(mean + noise) - pixels
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        loss = error.square().mean() + 0.1 * error.abs().mean() + KL * divergence
        run.step(loss, named.values())
        run.log(psnr=-10 * (error.detach().square().mean() / 4).log10(), kl=divergence.detach())
    return vae


@torch.no_grad()
def normalize_latents(vae: Autoencoder, preset: Preset, device: str = "cpu") -> None:
    """Changes an autoencoder so that its latents have mean 0 and standard deviation 1.

    The mean is 0 in every channel, the standard deviation 1 over all channels together.

    Both are measured on 512 training scenes. The convolutions before and after the latents are
    changed in place, so that decoded pictures stay as they are. All channels are scaled alike:
    those that matter more to the picture keep varying more.
    """
    scenes = [draw_scene("train", i) for i in range(512)]
    pixels = to_pixels(render(scenes, (preset.size, preset.size), 4, device).frames)
    means = torch.cat([vae.posterior(p)[0] for p in pixels.split(256)])
    mean, c = means.mean((0, 2, 3)), means.shape[1]
    deviation = (means - mean[:, None, None]).square().mean().sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    # PyTorch declares that a convolution may have no bias; these two have one
    assert into.bias is not None and out.bias is not None
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation
    into.weight[:c] /= deviation
    into.bias[:c] = (into.bias[:c] - mean) / deviation
    into.bias[c:] -= 2 * deviation.log()


def to_pixels(frames: Tensor) -> Tensor:
    """Converts frames (..., h, w, 3) uint8 to pixels (n, 3, h, w) float32 in [-1, 1].

    n is the product of the leading axes.
    """
    return frames.flatten(0, -4).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def _pixels(preset: Preset, run: Run) -> Tensor:
    """Renders one random frame of each of `preset.images` scenes; more of one clip teach little."""
    scenes = run.scenes(preset.images)
    clips = render(scenes, (preset.size, preset.size), preset.frames, run.device).frames
    batch = torch.arange(len(clips), device=clips.device)
    chosen = torch.randint(clips.shape[1], (len(clips),), device=clips.device)
    return to_pixels(clips[batch, chosen][:, None])
