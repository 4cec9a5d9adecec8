"""Training of the transformer together with the text encoder, by flow matching."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyv2v.backbones.wan.config import TransformerConfig
from anyv2v.backbones.wan.schedule import NEARLY_NOISE, TRAIN_STEPS
from anyv2v.backbones.wan.transformer import Transformer
from anyv2v.config import section
from anyv2v.umt5.encoder import TextEncoder, UMT5Config
from anyv2v.umt5.tokenizer import Tokenizer
from anyv2v.vae.video_autoencoder import VideoAutoencoder
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import Scene, draw_scene
from anyv2v.weights.demo.train.muon import optimizer
from anyv2v.weights.flow.recipe import TRAIN_SHIFT, Preset, config, tokenizer_files
from anyv2v.weights.flow.train.run import Run
from anyv2v.weights.flow.train.vae import latents_of

OUTER = ("patch", "modulation", "embedding", "relative_bias", "transformer.out")
"""Parts of the names of the tensors that Muon does not train: no inner matrices."""
DROPPED = 0.1
"""Probability that a clip's caption is left out in training, as classifier-free guidance needs."""
VALIDATED = 64
"""Number of the clips on which the loss is measured again and again."""


class Velocity(nn.Module):
    """The transformer and its text encoder, untrained, with the tokenizer."""

    def __init__(self, preset: Preset):
        super().__init__()
        sizes = config(preset)
        self.transformer = Transformer(section(sizes, "transformer", TransformerConfig))
        self.text = TextEncoder(section(sizes, "text", UMT5Config))
        with tempfile.TemporaryDirectory() as folder:
            for name, text in tokenizer_files().items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            text = self.text.config
            self.tokenizer = Tokenizer.load(path.parent, text.tokens, text.vocab_size)
        self._initialize()

    def forward(
        self, clean: Tensor, noise: Tensor, sigmas: Tensor, captions: Sequence[str]
    ) -> Tensor:
        """Returns the squared error of each clip's velocity, noise - clean, (b,).

        clean, noise: (b, c, f, h, w), of which frame 0 stays clean and does not count. sigmas:
        (b,), from 0 to 1. captions: b texts.
        """
        s = sigmas[:, None, None, None, None]
        noisy = torch.cat([clean[:, :, :1], torch.lerp(clean, noise, s)[:, :, 1:]], dim=2)
        conditions = self.transformer.condition(self.encode(captions))
        # what the network is told has no fraction, as in the editor's schedule
        found = self.transformer(noisy, (TRAIN_STEPS * sigmas).long(), conditions)
        return (found - (noise - clean))[:, :, 1:].square().mean((1, 2, 3, 4))

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Encodes b texts as the editor does one: (b, tokens, c)."""
        device = self.transformer.out.weight.device
        rows: dict[int, list[int]] = defaultdict(list)
        ids = [self.tokenizer(caption) for caption in captions]
        for i, row in enumerate(ids):
            rows[row.shape[1]].append(i)
        # the encoder reads texts of one length at once
        found = [self.text(torch.cat([ids[i] for i in same]).to(device)) for same in rows.values()]
        order = torch.tensor([i for same in rows.values() for i in same], device=device)
        return torch.cat(found)[order.argsort()]

    def _initialize(self) -> None:
        """Sets initial values where PyTorch's own do not serve."""
        # at first the timestep changes nothing, and an output of zero is the best guess
        for layer in (self.transformer.time_projection, self.transformer.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("cross.out.weight", "relative_bias.weight")):
                nn.init.zeros_(parameter)


def prepare(path: Path, preset: Preset, device: str) -> Run:
    """Makes the run of a transformer's training, or continues with its checkpoint at `path`."""
    torch.manual_seed(0)
    network = Velocity(preset).to(device)
    named = network.named_parameters()
    return Run(path, network, optimizer(named, preset.rate, preset.matrix_rate, OUTER))


def draw_sigmas(b: int, device: str) -> Tensor:
    """Draws b levels (b,), one from each of b equal parts of the shifted grid, in random order."""
    u = (torch.randperm(b) + torch.rand(b)) / b
    return shifted(u, TRAIN_SHIFT).to(device)


def shifted(u: Tensor, shift: float) -> Tensor:
    """Returns the sigmas of numbers u from 0 to 1, see `FlowSchedule`."""
    return (shift * u / (1 + (shift - 1) * u)).clamp(max=1 - NEARLY_NOISE)


def encoded(scenes: Sequence[Scene], vae: VideoAutoencoder, preset: Preset, device: str) -> Tensor:
    """Renders and encodes scenes: (b, c, f, h, w)."""
    size = preset.size, preset.size
    return latents_of(vae, render(scenes, size, preset.frames, device).frames)


def batch_loss(run: Run, vae: VideoAutoencoder, preset: Preset, device: str) -> Tensor:
    """Computes the loss of the next batch of training clips."""
    scenes = run.scenes(preset.clips)
    clean = encoded(scenes, vae, preset, device)
    kept = torch.rand(len(scenes)) >= DROPPED
    captions = [scene.caption if keep else "" for scene, keep in zip(scenes, kept, strict=True)]
    noise, sigmas = torch.randn_like(clean), draw_sigmas(len(scenes), device)
    return run.network(clean, noise, sigmas, captions).mean()


@dataclass(frozen=True)
class Validation:
    """b clips on which the loss is measured, with their noise and levels."""

    clean: Tensor
    """(b, c, f, h, w)."""
    noise: Tensor
    """(b, c, f, h, w)."""
    sigmas: Tensor
    """(b,), rising."""
    captions: tuple[str, ...]
    """b texts."""

    FIRST = 10**6
    """Index of the first scene, behind those whose edits are scored."""

    @classmethod
    def draw(cls, vae: VideoAutoencoder, preset: Preset, device: str) -> Validation:
        """Draws `VALIDATED` clips, b, of the validation scenes."""
        b = VALIDATED
        scenes = [draw_scene("validation", cls.FIRST + i) for i in range(b)]
        clean = encoded(scenes, vae, preset, device)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigmas = shifted((torch.arange(b) + 0.5) / b, TRAIN_SHIFT).to(device)
        return cls(clean, noise, sigmas, tuple(scene.caption for scene in scenes))

    @torch.no_grad()
    def losses(self, run: Run) -> dict[str, float]:
        """Returns the loss of the moving average, over all levels and in quarters of the grid."""
        pieces = [
            torch.func.functional_call(run.network, run.average, part)
            for part in zip(
                *(x.split(8) for x in (self.clean, self.noise, self.sigmas)),
                [self.captions[i : i + 8] for i in range(0, len(self.captions), 8)],
                strict=True,
            )
        ]
        errors = torch.cat(pieces)
        quarters = {f"v{i + 1}": x.mean().item() for i, x in enumerate(errors.chunk(4))}
        return {"validation": errors.mean().item(), **quarters}
