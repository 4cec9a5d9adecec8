"""Training of the UNet together with the CLIP text and vision encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.backbones.i2vgen.backbone import I2VGen, image_latents
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.schedule import TRAIN_STEPS, alphas_cumprod
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.clip.preprocess import PreprocessConfig, preprocess
from anyv2v.clip.text import TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.clip.vision import VisionEncoder
from anyv2v.config import section
from anyv2v.vae.autoencoder import Autoencoder
from anyv2v.weights.demo.recipe import Preset, config, tokenizer_files
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import Scene
from anyv2v.weights.demo.train.muon import optimizer
from anyv2v.weights.demo.train.run import Run
from anyv2v.weights.demo.train.vae import to_pixels

DROPPED = 0.1
"""Probability that a clip's caption, and likewise its image embedding, is left out in training, as
classifier-free guidance needs."""


class Networks:
    """The UNet and its two CLIP encoders, untrained, with tokenizer and image preprocessing."""

    def __init__(self, preset: Preset, device: str):
        self.preset, self.device = preset, device
        self.config = config(preset)
        builders = I2VGen.networks(self.config)
        unet, text, vision = (builders[k]().to(device) for k in ("unet", "text", "vision"))
        # these are the classes that I2VGen.networks builds under the three names
        self.unet, self.text = cast(UNet, unet), cast(TextEncoder, text)
        self.vision = cast(VisionEncoder, vision)
        self.modules: dict[str, nn.Module] = {"unet": unet, "text": text, "vision": vision}
        """Component -> its network."""
        self._initialize()
        settings = section(self.config, "tokenizer", TokenizerConfig)
        vocab, merges = tokenizer_files()
        self.tokenizer = Tokenizer(vocab, _pairs(merges), settings, self.config["text"]["tokens"])
        self.preprocess = section(self.config, "preprocess", PreprocessConfig)

    def conditions(
        self, captions: Sequence[str], first: Tensor, latents: Tensor, mask: Tensor, fps: Tensor
    ) -> Conditions:
        """Builds the UNet's conditions for b clips, just as the editor builds those of one clip.

        captions: b texts. first: first frames, (b, h, w, 3) uint8. latents: of the first frames,
        (b, c, 1, h/s, w/s), where s is the autoencoder's downsampling. mask: (b, 1) float, 0 where
        the image embedding is left out, else 1. fps: (b,), frames per second.
        """
        ids = torch.cat([self.tokenizer(caption) for caption in captions]).to(self.device)
        images = [preprocess(np.asarray(x), x.shape[1], self.preprocess) for x in first.cpu()]
        return self.unet.condition(
            self.text(ids, clip_skip=1),
            self.vision(torch.cat(images).to(self.device)) * mask,
            image_latents(latents, self.preset.frames),
            fps,
        )

    def parameters(self) -> list[nn.Parameter]:
        """Lists the parameters of all three networks."""
        return [p for network in self.modules.values() for p in network.parameters()]

    def _initialize(self) -> None:
        """Sets initial values where PyTorch's own do not serve."""
        for tower in (self.text, self.vision):
            for module in tower.modules():
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.vision.class_embedding, std=0.02)
        # an output of zero is the best guess of an untrained network
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)


def train_unet(run: Run, networks: Networks, vae: Autoencoder) -> None:
    """Trains the UNet and its encoders until the time of `run` is over.

    The loss is the mean squared error of the predicted v (see `diffuse`). vae: encodes the clips;
    it is not trained.
    """
    preset = networks.preset
    named = nn.ModuleDict(networks.modules).named_parameters()
    run.begin(networks.modules, optimizer(named, preset.rate, preset.matrix_rate))
    levels = alphas_cumprod().to(run.device)
    parameters = networks.parameters()
    b, device = preset.clips, run.device
    while run.tick():
        scenes = run.scenes(b)
        clips = render(scenes, (preset.size, preset.size), preset.frames, device).frames
        clean = encode(vae, clips)
        captions = [_caption(scene) for scene in scenes]
        mask = (torch.rand(b, 1, device=device) > DROPPED).float()
        fps = torch.randint(7, 10, (b,), device=device)
        # stratified: one timestep from each of b equal parts of the schedule
        t = (torch.randperm(b, device=device) + torch.rand(b, device=device)) / b
        t = (t * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
        noisy, v = diffuse(clean, levels[t])
        conditions = networks.conditions(captions, clips[:, 0], clean[:, :, :1], mask, fps)
        errors = (networks.unet(noisy, t, conditions) - v).square().mean((1, 2, 3, 4))
        run.step(errors.mean(), parameters)
        early, late = errors.detach()[t < 500], errors.detach()[t >= 500]
        run.log(early=early.mean(), late=late.mean())


@torch.no_grad()
def encode(vae: Autoencoder, clips: Tensor) -> Tensor:
    """Encodes clips (b, f, h, w, 3) uint8 as latents (b, c, f, h/s, w/s), without gradients.

    The latents are the means of the autoencoder's posterior, multiplied by its scaling factor; s is
    its downsampling.
    """
    latents = vae.encode(to_pixels(clips))
    return latents.unflatten(0, clips.shape[:2]).transpose(1, 2).contiguous()


def diffuse(clean: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns clean latents with random noise added, and v, the target of the network for them.

    clean: (b, c, f, h, w), as both results. levels: alpha-bar of each clip, (b,). v =
    sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) clean (Salimans and Ho 2022).
    """
    noise = torch.randn_like(clean)
    signal, sigma = (x.sqrt()[:, None, None, None, None] for x in (levels, 1 - levels))
    return signal * clean + sigma * noise, signal * noise - sigma * clean


def _caption(scene: Scene) -> str:
    return "" if torch.rand(()) < DROPPED else scene.caption


def _pairs(merges: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in map(str.split, merges.splitlines()[1:])]
