"""Operations of an edit at the published size, counted without data, with each saving on or off.

Where query and key serve several groups of values, PyTorch's attention runs once for each group.
Our kernel for GPUs computes one softmax for all of them, which is not counted here.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from anyv2v.backbones.defaults import published_defaults
from anyv2v.backbones.i2vgen.backbone import I2VGen
from anyv2v.backbones.i2vgen.config import UNetConfig
from anyv2v.backbones.i2vgen.sites import paper_sites
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.editor import Defaults, Editor
from anyv2v.injection.taps import (
    NO_TAPS,
    Record,
    Recorded,
    Replay,
    ShareSource,
    Taps,
    repeat_to_batch,
)
from anyv2v.pipeline.step_plan import SourcePass, Way
from anyv2v.runtime.accounting import count
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.vae.codec import ImageCodec

FRAMES, SIZE, STEPS = 16, 512, 50
INVERSION, BRANCHES = 500, 3
"""The original's evaluations of an inversion, and its branches in every step of sampling."""

UNET = UNetConfig(4, (320, 640, 1280, 1280), (True, True, True, False), 2, 64, 1024, 32)
VAE = AutoencoderConfig(3, 4, (128, 256, 512, 512), 2, 32, 0.18215)
TEXT = TextConfig(49408, 77, 1024, 16, 24, 4096, "gelu", 1e-5)
VISION = VisionConfig(224, 14, 1280, 16, 32, 5120, "gelu", 1e-5, 1024)


@dataclass(frozen=True)
class Savings:
    """Which savings are on in sampling with the source in the batch; WORDS describes them."""

    no_source: bool = True
    projections: bool = True
    convolutions: bool = True
    context: bool = True
    prefix: bool = True
    softmax: bool = True


NOTHING = Savings(*[False] * len(fields(Savings)))
WORDS = {
    "no_source": "steps that inject nothing run without the source",
    "projections": "query and key of sites projected for the source alone",
    "convolutions": "convolutions before an injected feature for the source alone",
    "context": "what no timestep changes, keys and values of the context too, once a run",
    "prefix": "negative and edit as one until the first cross-attention",
    "softmax": "one softmax for branches that share query and key",
}


class Sharing(ShareSource):
    """ShareSource with some of its savings turned off."""

    def __init__(self, sites, branches: int, savings: Savings):
        super().__init__(sites, branches)
        self.savings = savings

    def feature(self, site, feature):
        """Compute the source's feature and use it for all branches."""
        saves = self.savings.convolutions if ".res." in site else self.savings.projections
        tensors = feature.compute(self.branches if saves else 1)
        one = feature.batch // self.branches
        tensors = [x[:one] if i < 2 else x for i, x in enumerate(tensors)]
        if not self.savings.softmax:
            # a copy for each branch, so that each computes attention of its own
            tensors = [repeat_to_batch(x, feature.batch) for x in tensors]
        return tuple(tensors)


def published_size() -> Editor:
    """An editor whose networks have the published sizes and no data, float16.

    It edits with the original's settings, as the published weights do.
    """
    with torch.device("meta"):
        networks = UNet(UNET), TextEncoder(TEXT), VisionEncoder(VISION), Autoencoder(VAE)
    unet, text, vision, vae = (x.half().eval().requires_grad_(False) for x in networks)
    sites = paper_sites(UNET.attention, UNET.layers)
    backbone = I2VGen(
        unet=unet,
        text=text,
        vision=vision,
        # only the shape of its result is used
        tokenizer=lambda prompt: torch.zeros(1, TEXT.tokens, dtype=torch.int64),
        preprocess=PreprocessConfig(VISION.image_size, (0.5,) * 3, (0.5,) * 3),
        groups={name: frozenset(chosen) for name, chosen in sites.items()},
        codec=ImageCodec(vae),
        defaults=published_defaults(Defaults((SIZE, SIZE), FRAMES, 8), I2VGen.published_settings),
    )
    return Editor(backbone)


class Counted:
    """Counts operations of an editor's networks; must be created inside `fake_mode`."""

    def __init__(
        self, editor: Editor, device: torch.device, frames: int = FRAMES, size: int = SIZE
    ):
        self.editor = editor
        twin = self.backbone = editor.backbone.meta_copy(device)
        self.shape = twin.codec.shape(frames, size, size)
        self.empty = partial(torch.empty, dtype=twin.dtype, device=device)
        self.conditions = [twin.meta_conditions(*self.shape[1:])]

        context_dim, tokens = twin.unet.config.context_dim, twin.tokenize("").shape[1]
        inputs = (
            self.empty(1, tokens, context_dim),
            self.empty(1, context_dim),
            self.empty(1, *self.shape),
            torch.zeros(1, device=device),
        )
        once = count(lambda: twin.unet.condition(*inputs)).flops
        read = once - count(lambda: twin.unet.conditioning(*inputs)).flops
        # operations for one branch if its conditions were computed in every evaluation and frame
        self.conditions_each_time = once + (frames - 1) * read

    def kinds(self, source_pass: SourcePass) -> Counter[tuple[frozenset[str], Way]]:
        """(Sites, way) -> how many steps of sampling inject these sites in this way."""
        plan = self.editor.step_plan(STEPS, source_pass=source_pass)
        return Counter((step.sites, step.way) for step in plan.steps)

    def forward(self, rows: list[int], taps: Taps = NO_TAPS) -> int:
        """Count one evaluation whose branch i has the latents of number rows[i]."""
        stacked = self.conditions[0].stack(self.conditions * len(rows), rows)
        latents = self.empty(1 + max(rows), *self.shape)
        return count(lambda: self.backbone.predict(latents, 1, stacked, taps)).flops

    def batched(self, savings: Savings) -> int:
        """Count sampling with the source in the batch."""
        total = 0
        for (sites, way), n in self.kinds("shared" if savings.no_source else "always").items():
            source = way == "batched"
            rows = [0, 1, 1] if source else [0, 0]
            rows = rows if savings.prefix else list(range(len(rows)))
            taps = Sharing(sites, len(rows), savings) if source else NO_TAPS
            again = 0 if savings.context else len(rows) * self.conditions_each_time
            total += n * (self.forward(rows, taps) + again)
        return total

    def replayed(self, compact: bool) -> int:
        """Count sampling that replays recorded features of the source."""
        total = 0
        for (sites, way), n in self.kinds("separate").items():
            record = Record(sites, compact, stop=True)
            if way == "separate":
                with suppress(Recorded):
                    self.forward([0], record)
            total += n * self.forward([0, 0], Replay(record.features))
        return total


def original_branch() -> int | None:
    """Count one branch of diffusers' network; None if diffusers is not installed."""
    try:
        from diffusers import I2VGenXLUNet
    except ImportError:
        return None
    with torch.device("meta"), torch.no_grad():
        unet = I2VGenXLUNet().eval()
        x, text = torch.empty(1, 4, FRAMES, SIZE // 8, SIZE // 8), torch.empty(1, 77, 1024)
        image, t = torch.empty(1, 1, 1024), torch.ones(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            unet(x, t, t, x, image, encoder_hidden_states=text)
    return counter.get_total_flops()
