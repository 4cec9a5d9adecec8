"""U1: forwards and whole edits of the other backbones, at the published sizes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.backbones.defaults import published_defaults
from anyv2v.backbones.registry import BACKBONES
from anyv2v.convert.published import convert
from anyv2v.editor import Defaults, Editor
from anyv2v.loading import expected_shapes
from bench.counted import FRAMES, SIZE, VAE
from bench.epsilon import writers
from bench.rental.edits import Job, first_and_next
from bench.rental.lab import Lab
from bench.rental.network import use_pytorch
from bench.truth import relative, use_definitions
from bench.unet import ALLOWED, draw

PUBLISHED = {
    "consisti2v": {
        "unet": {
            "widths": (320, 640, 1280, 1280),
            "spatial_heads": (5, 10, 20, 20),
            "temporal_heads": 8,
            "context_width": 1024,
            "groups": 32,
        },
        "text": {"width": 1024, "heads": 16, "layers": 23, "mlp_width": 4096},
    },
    "seine": {
        "unet": {
            "widths": (320, 640, 1280, 1280),
            "heads": (8, 8, 8, 8),
            "context_width": 768,
            "groups": 32,
        },
        "text": {"width": 768, "heads": 12, "layers": 12, "mlp_width": 3072},
    },
}
"""Backbone -> section of its config -> the sizes of the published networks."""


def published_size(name: str, lab: Lab) -> Editor:
    """Make an editor of the published size of another backbone, with random weights.

    It edits with the original's settings. The vocabulary is small; in a dry run all is.
    """
    with tempfile.TemporaryDirectory() as folder:
        writers()[name](Path(folder) / "published")
        weights = Path(folder) / "weights"
        convert(Path(folder) / "published", weights, expected_shapes)
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        defaults = Defaults((128, 64), 4, 8)
        if not lab.dry:
            for part, sizes in PUBLISHED[name].items():
                config[part] |= sizes
            config["vae"] |= {"widths": VAE.level_channels, "layers": VAE.layers, "groups": 32}
            defaults = Defaults((SIZE, SIZE), FRAMES, 8)
        backbone = BACKBONES[name]
        networks = {}
        with torch.device(lab.device):
            for part, build in backbone.networks(config).items():
                network = build().eval().requires_grad_(False).to(lab.dtype)
                draw(network)
                networks[part] = network.to(memory_format=torch.channels_last)
        told = published_defaults(defaults, backbone.published_settings)
        return Editor(backbone.assemble(config, networks, weights, told))


@torch.no_grad()
def others(lab: Lab) -> None:
    """U1: check and time a forward, an inversion, a first and a further edit of each."""
    for name in PUBLISHED:
        editor = published_size(name, lab)
        _forward(lab, name, editor)
        first_and_next(lab, f"edit, {name}", Job(lab, editor), rounds=2)


def _forward(lab: Lab, name: str, editor: Editor) -> None:
    """Compare one branch with the definitions, and captured with eager; time it."""
    job = Job(lab, editor)
    (width, height), frames = editor.defaults.size, editor.defaults.frames
    shape = editor.backbone.codec.shape(frames, height, width)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, *shape, generator=generator).to(lab.device, lab.dtype)
    given = editor.condition("a red shirt", job.frame, frames, editor.defaults.size)
    t = torch.full((1,), 501.0, device=lab.device)
    case = f"forward, {name}"

    def ours() -> Tensor:
        return editor.backbone.predict(latents, t, given)

    with use_definitions():
        truth = ours()
    error = relative(ours(), truth)
    right = error <= ALLOWED[lab.dtype]
    lab.fact(
        case,
        "anyv2v, eager",
        "ok" if right else "wrong",
        times=lab.clock(ours),
        error=error,
    )
    eager, captured = ours(), lab.captured(ours)
    same = torch.equal(captured(), eager)
    times = lab.clock(captured)
    lab.fact(case, "captured (the default)", "ok" if same else "wrong", times=times, headline=True)
    with use_pytorch():
        error = relative(ours(), truth)
        plain = lab.captured(ours)
        times = lab.clock(plain)
    lab.fact(
        case, "PyTorch in place of every kernel, captured", times=times, error=error, headline=True
    )
