"""The diffusion model's part of the training recipe: the UNet and both of its encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.backbones.i2vgen.backbone import I2VGen, image_latents
from anyv2v.backbones.i2vgen.conditioning import Conditions
from anyv2v.backbones.i2vgen.schedule import TRAIN_STEPS, alphas_cumprod
from anyv2v.clip.preprocess import PreprocessConfig, preprocess
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.config import section
from anyv2v.vae.autoencoder import Autoencoder
from anyv2v.weights.demo.recipe import Preset, config, tokenizer_files
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import Scene
from anyv2v.weights.demo.train.muon import optimizer
from anyv2v.weights.demo.train.run import Run
from anyv2v.weights.demo.train.vae import to_pixels

DROPPED = 0.1
"""How often the text, and how often the image embedding, is left out, for guidance."""


class Networks:
    """The three networks that are trained together, and what they are told of a clip."""

    def __init__(self, preset: Preset, device: str):
        self.preset, self.device = preset, device
        self.config = config(preset)
        builders = I2VGen.networks(self.config)
        self.tower = {k: builders[k]().to(device) for k in ("unet", "text", "vision")}
        _start(self.tower)
        settings = section(self.config, "tokenizer", TokenizerConfig)
        vocab, merges = tokenizer_files()
        self.tokenizer = Tokenizer(vocab, _pairs(merges), settings, self.config["text"]["tokens"])
        self.preprocess = section(self.config, "preprocess", PreprocessConfig)

    def conditions(
        self, captions: Sequence[str], first: Tensor, latents: Tensor, keep: Tensor, fps: Tensor
    ) -> Conditions:
        """As the editor builds them, for a batch.

        first (b, h, w, 3) uint8; their latents (b, c, 1, h/s, w/s); keep (b, 1) float: 0 for the
        image embeddings that are left out; fps (b,).
        """
        ids = torch.cat([self.tokenizer(caption) for caption in captions]).to(self.device)
        images = [preprocess(np.asarray(x), x.shape[1], self.preprocess) for x in first.cpu()]
        return self.tower["unet"].condition(
            self.tower["text"](ids, clip_skip=1),
            self.tower["vision"](torch.cat(images).to(self.device)) * keep,
            image_latents(latents, self.preset.frames),
            fps,
        )

    def parameters(self) -> list[nn.Parameter]:
        return [p for network in self.tower.values() for p in network.parameters()]


def train_unet(run: Run, networks: Networks, vae: Autoencoder) -> None:
    """Until the run's time is over, on the latents of an autoencoder that stays as it is."""
    preset = networks.preset
    named = nn.ModuleDict(networks.tower).named_parameters()
    run.begin(networks.tower, optimizer(named, preset.rate, preset.matrix_rate))
    levels = alphas_cumprod().to(run.device)
    parameters = networks.parameters()
    b, device = preset.clips, run.device
    while run.goes_on():
        scenes = run.scenes(b)
        clips = render(scenes, (preset.size,) * 2, preset.frames, device).frames
        clean = encode(vae, clips)
        captions = [_caption(scene) for scene in scenes]
        keep = (torch.rand(b, 1, device=device) > DROPPED).float()
        fps = torch.randint(7, 10, (b,), device=device)
        # one timestep of every part of the schedule
        t = (torch.randperm(b, device=device) + torch.rand(b, device=device)) / b
        t = (t * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
        noisy, v = diffuse(clean, levels[t])
        conditions = networks.conditions(captions, clips[:, 0], clean[:, :, :1], keep, fps)
        errors = (networks.tower["unet"](noisy, t, conditions) - v).square().mean((1, 2, 3, 4))
        run.step(errors.mean(), parameters)
        early, late = errors.detach()[t < 500], errors.detach()[t >= 500]
        run.log(early=early.mean(), late=late.mean())


@torch.no_grad()
def encode(vae: Autoencoder, clips: Tensor) -> Tensor:
    """(b, f, h, w, 3) uint8 -> (b, c, f, h/s, w/s): scaled means of the posterior."""
    latents = vae.encode(to_pixels(clips))
    return latents.unflatten(0, clips.shape[:2]).transpose(1, 2).contiguous()


def diffuse(clean: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents at alpha-bar `levels` (b,), and v: what the network shall say of them."""
    noise = torch.randn_like(clean)
    signal, rest = (x.sqrt()[:, None, None, None, None] for x in (levels, 1 - levels))
    return signal * clean + rest * noise, signal * noise - rest * clean


def _caption(scene: Scene) -> str:
    return "" if torch.rand(()) < DROPPED else scene.caption


def _start(networks: dict[str, nn.Module]) -> None:
    """Initial values where PyTorch's own do not serve."""
    for name in ("text", "vision"):
        for module in networks[name].modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(networks["vision"].class_embedding, std=0.02)
    nn.init.zeros_(networks["unet"].conv_out.weight)
    nn.init.zeros_(networks["unet"].conv_out.bias)


def _pairs(merges: str) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in merges.splitlines()[1:]]
