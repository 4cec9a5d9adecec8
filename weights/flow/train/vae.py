"""Training of the autoencoder on single pictures."""

from __future__ import annotations

from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyv2v.config import section
from anyv2v.vae.causal import CausalConv3d, Past
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import draw_scene
from anyv2v.weights.demo.train.muon import optimizer
from anyv2v.weights.demo.train.vae import to_pixels
from anyv2v.weights.flow.recipe import Preset, config
from anyv2v.weights.flow.train.run import Run

KL = 2e-4
"""Weight, in the loss, of the KL divergence of the latents from a standard normal distribution."""
OUTER = ("conv_in", "conv_out", "quant_conv")
"""Parts of the names of the layers that Muon does not train."""
VAE_SCENES = 10**8
"""Index of the first scene that the autoencoder is trained on; the transformer's first is 0."""
MEASURED = 512
"""Number of scenes from which mean and deviation of the latents are measured."""


def build(preset: Preset) -> VideoAutoencoder:
    """Builds an autoencoder, untrained, that takes every frame for itself.

    The weights of its convolutions for earlier frames are zero.
    """
    vae = VideoAutoencoder(section(config(preset), "vae", VideoAutoencoderConfig))
    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            nn.init.zeros_(module.weight.data[:, :, :-1])
    return vae


def restrict_to_pictures(vae: VideoAutoencoder) -> VideoAutoencoder:
    """Lets the layers of `vae` compute pictures alone, in a third of the time, and returns it.

    The results for clips of one frame are the same, and so are gradients but for those of the
    weights for earlier frames, which are zero.
    """

    def forward(self: CausalConv3d, input: Tensor, past: Past) -> Tensor:
        weight, pad = self.weight[:, :, -1], self.padding[1:]
        out = F.conv2d(input[:, 0].permute(0, 3, 1, 2), weight, self.bias, padding=pad)
        return out.permute(0, 2, 3, 1)[:, None].contiguous()

    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            module.forward = MethodType(forward, module)
    return vae


class Reconstruction(nn.Module):
    """An autoencoder and its loss on pictures."""

    def __init__(self, vae: VideoAutoencoder):
        super().__init__()
        self.vae = restrict_to_pictures(vae)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns loss, squared error and KL divergence of pixels (b, 3, h, w) in [-1, 1]."""
        mean, log_variance = self.vae.posterior(pixels[:, :, None], {})
        noise = torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        error = self.vae.decode(mean + noise, {})[:, :, 0] - pixels
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        squared = error.square().mean()
        return squared + 0.1 * error.abs().mean() + KL * divergence, squared, divergence


def prepare_vae(path: Path, preset: Preset, device: str) -> Run:
    """Makes the run of an autoencoder's training, or continues with its checkpoint at `path`.

    The learning rates fall in the second half of the preset's steps.
    """
    torch.manual_seed(0)
    network = Reconstruction(build(preset)).to(device)
    named = network.named_parameters()
    run = Run(path, network, optimizer(named, preset.rate, preset.matrix_rate, OUTER), VAE_SCENES)
    half = preset.vae_steps // 2
    run.fall(preset.vae_steps - half, half)
    return run


def train_vae(run: Run, preset: Preset, device: str, minutes: float) -> None:
    """Trains the autoencoder for so many minutes, or until it has made all of its steps."""

    def loss() -> Tensor:
        scenes = run.scenes(preset.images)
        clips = render(scenes, (preset.size, preset.size), preset.frames, device).frames
        # one frame of each scene: more of one clip teach little
        chosen = torch.randint(clips.shape[1], (len(clips),))
        pixels = to_pixels(clips[torch.arange(len(clips)), chosen][:, None])
        value, squared, divergence = run.network(pixels)
        # pixels have a range of 2
        run.log(psnr=-10 * (squared.detach() / 4).log10(), kl=divergence.detach())
        return value

    run.train(loss, minutes)


@torch.no_grad()
def normalized(run: Run, preset: Preset, device: str) -> VideoAutoencoder:
    """Returns the trained autoencoder, changed so that its latents have mean 0 and deviation 1.

    The mean is 0 in every channel, the standard deviation 1 over all channels together: those that
    matter more to the picture keep varying more. Both are measured on `MEASURED` training scenes.
    The layers before and after the latents are changed; decoded pictures stay as they are.
    """
    network = Reconstruction(build(preset)).to(device)
    network.load_state_dict(run.average)
    vae, c = network.vae, preset.latent_channels
    scenes = [draw_scene("train", VAE_SCENES + i) for i in range(MEASURED)]
    pixels = to_pixels(render(scenes, (preset.size, preset.size), 4, device).frames)
    means = torch.cat([vae.posterior(p[:, :, None], {})[0] for p in pixels.split(256)])
    mean = means.mean((0, 2, 3, 4))
    deviation = (means - mean[:, None, None, None]).square().mean().sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias.add_(out.weight @ mean)
    out.weight *= deviation
    into.weight[:c] /= deviation
    into.bias[:c].sub_(mean).div_(deviation)
    into.bias[c:] -= 2 * deviation.log()
    return vae


@torch.no_grad()
def latents_of(vae: VideoAutoencoder, clips: Tensor) -> Tensor:
    """Encodes clips (b, f, h, w, 3) uint8 as latents (b, c, f, h/s, w/s), each frame for itself.

    s is the number of pixels per latent.
    """
    mean, _ = vae.posterior(to_pixels(clips)[:, :, None], {})
    latents = vae.normalize(mean)[:, :, 0]
    return latents.unflatten(0, clips.shape[:2]).transpose(1, 2).contiguous()
