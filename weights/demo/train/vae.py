"""The autoencoder's part of the training recipe."""

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
"""Weight of the latents' divergence from a normal distribution."""


def build(preset: Preset) -> Autoencoder:
    return Autoencoder(section(config(preset), "vae", AutoencoderConfig))


def train_vae(run: Run, preset: Preset, given: Autoencoder | None = None) -> Autoencoder:
    """Until the run's time is over. The latents of a `given` one stay: its decoder is trained."""
    vae = given or build(preset).to(run.device)
    named = dict(vae.requires_grad_(True).named_parameters())
    if given:
        named = {k: p for k, p in named.items() if k.startswith(("decoder.", "post_quant_conv."))}
    run.begin({"vae": vae}, optimizer(named.items(), preset.rate, preset.matrix_rate))
    while run.goes_on():
        pixels = _pixels(preset, run)
        with torch.no_grad() if given else torch.enable_grad():
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
def normalise(vae: Autoencoder, preset: Preset, device: str = "cpu") -> None:
    """Latents of mean 0 in every channel and deviation 1 over all, by the convolutions around.

    Channels keep their shares: those that matter more to the picture vary more.
    """
    scenes = [draw_scene("train", i) for i in range(512)]
    pixels = to_pixels(render(scenes, (preset.size,) * 2, 4, device).frames)
    means = torch.cat([vae.posterior(p)[0] for p in pixels.split(256)])
    mean, c = means.mean((0, 2, 3)), means.shape[1]
    deviation = (means - mean[:, None, None]).square().mean().sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation
    into.weight[:c] /= deviation
    into.bias[:c] = (into.bias[:c] - mean) / deviation
    into.bias[c:] -= 2 * deviation.log()


def to_pixels(frames: Tensor) -> Tensor:
    """(..., h, w, 3) uint8 -> (r, 3, h, w) float32 in [-1, 1]."""
    return frames.flatten(0, -4).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def _pixels(preset: Preset, run: Run) -> Tensor:
    """One frame of each of as many scenes: frames of one clip would teach little more."""
    scenes = run.scenes(preset.images)
    clips = render(scenes, (preset.size,) * 2, preset.frames, run.device).frames
    rows = torch.arange(len(clips), device=clips.device)
    chosen = torch.randint(clips.shape[1], (len(clips),), device=clips.device)
    return to_pixels(clips[rows, chosen][:, None])
