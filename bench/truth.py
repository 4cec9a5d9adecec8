"""Independent references with which results are compared before anything is timed.

The schedule is computed here from the papers, in float64. A network is compared with diffusers' on
the same weights, and with itself with every kernel replaced by its definition.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import anyv2v
from anyv2v.backbones.i2vgen.unet import UNet
from anyv2v.convert.formats.i2vgen import UNET
from anyv2v.convert.rename import rename
from anyv2v.diffusion.schedule import TableSchedule
from anyv2v.editor import Editor
from anyv2v.kernels import attention
from bench.core import Wrong

CHOICES = {
    "attention": ("_REQUESTED",),
    "short_attention": ("_REQUESTED", "_REQUESTED_PROBABILITIES", "_REQUESTED_APPLY"),
    "group_norm_silu": ("_REQUESTED",),
    "layer_norm": ("_REQUESTED", "_REQUESTED_ADD"),
    "geglu": ("_REQUESTED",),
    "linear": ("_REQUESTED",),
    "residual_sum": ("_REQUESTED",),
}
"""Kernel -> the variables of its module that hold the choice made by the environment."""

MOST_SCORES = 2**28
"""Most attention scores that the definition of attention computes at once."""


def relative(out: Tensor, truth: Tensor) -> float:
    """Return ||out - truth|| / ||truth||."""
    truth = truth.double()
    return ((out.double() - truth).norm() / truth.norm()).item()


def has_diffusers() -> bool:
    """Whether diffusers is installed."""
    return importlib.util.find_spec("diffusers") is not None


def diffusers_twin(unet: UNet, dtype: torch.dtype | None = None, channels_last=False) -> Any:
    """Build diffusers' I2VGenXLUNet with the same sizes and weights, on the same device."""
    from diffusers import I2VGenXLUNet

    c, first = unet.config, unet.conv_out.weight
    theirs = I2VGenXLUNet(
        in_channels=c.channels,
        out_channels=c.channels,
        down_block_types=["CrossAttnDownBlock3D" if a else "DownBlock3D" for a in c.attention],
        up_block_types=["CrossAttnUpBlock3D" if a else "UpBlock3D" for a in c.attention[::-1]],
        block_out_channels=c.level_channels,
        layers_per_block=c.layers,
        norm_num_groups=c.groups,
        cross_attention_dim=c.context_dim,
        attention_head_dim=c.head_dim,
    ).eval()
    state, shapes = unet.state_dict(), theirs.state_dict()
    named = {new.name: state[old] for old, new in rename(state, UNET, "theirs").items()}
    theirs.load_state_dict({k: x.reshape(shapes[k].shape) for k, x in named.items()})
    for x in theirs.parameters() if channels_last else ():
        if x.ndim > 3:
            form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            x.data = x.data.contiguous(memory_format=form)
    # diffusers' own .to() warns about things that do not matter here
    return torch.nn.Module.to(theirs, first.device, dtype or first.dtype).requires_grad_(False)


@contextmanager
def use_definitions() -> Iterator[None]:
    """Replace every kernel by its definition in plain PyTorch, attention's in parts that fit."""
    places = [
        (importlib.import_module(f"anyv2v.kernels.{kernel}"), name)
        for kernel, names in CHOICES.items()
        for name in names
    ]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, "reference")
        table = tuple(
            replace(i, run=partial(_in_parts, i.run)) if i.name == "reference" else i
            for i in attention.TABLE
        )
        with mock.patch.object(attention, "TABLE", table):
            yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _in_parts(
    definition: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **options: Any
) -> Tensor:
    """Compute the definition in parts; at full size it would keep several copies of 16 GB."""
    rows, n, heads, _ = q.shape
    at_once = max(1, MOST_SCORES // (n * heads * k.shape[1]))
    values = v.unflatten(0, (-1, rows))
    parts = [
        definition(*x[:2], x[2].flatten(0, 1), **options).unflatten(0, (len(values), -1))
        for x in zip(q.split(at_once), k.split(at_once), values.split(at_once, 1), strict=True)
    ]
    return torch.cat(parts, 1).flatten(0, 1)


def alphas() -> np.ndarray:
    """Return alpha-bar (1000,), the cosine schedule rescaled to zero terminal SNR.

    arXiv 2102.09672, eq. 17, and arXiv 2305.08891, algorithm 1.
    """
    u = np.arange(1001) / 1000
    remaining = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    root = np.sqrt(np.cumprod(1 - np.minimum(1 - remaining[1:] / remaining[:-1], 0.999)))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def check_schedule(schedule: TableSchedule) -> None:
    """Raise Wrong unless the table, the timesteps and both steps are those of the papers."""
    levels = alphas()
    if not np.abs(schedule.alphas_cumprod.double().numpy() - levels).max() <= 1e-5:
        raise Wrong("the schedule's table of noise levels is not the papers'")
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    for steps in (50, 500):
        stride = 1000 // steps
        expected = list(range(1 + (steps - 1) * stride, 0, -stride))
        if schedule.timesteps(steps) != expected:
            raise Wrong(f"the timesteps of {steps} steps are not {expected[:2]} and so on")
        for t in (1, 501, expected[0]):
            here, below = levels[t], levels[t - stride] if t >= stride else 1.0
            for step, a, b in (
                (schedule.step, here, below),
                (schedule.inverse_step, below, here),
            ):
                clean, noise = (
                    math.sqrt(a) * x - math.sqrt(1 - a) * v,
                    math.sqrt(a) * v + math.sqrt(1 - a) * x,
                )
                truth = math.sqrt(b) * clean + math.sqrt(1 - b) * noise
                if not (off := relative(step(v, t, x, steps), truth)) <= 1e-4:
                    raise Wrong(f"the schedule's {step.__name__} at t = {t} is off by {off:.2g}")


@torch.no_grad()
def check_network(editor: Editor, video: anyv2v.Video, allowed: float) -> None:
    """Raise Wrong unless predictions, with and without injection, agree with the references."""
    frames, height, width, _ = video.frames.shape
    condition = editor.condition("a word", video.frames[0], frames, (width, height))
    conditions = type(condition).stack([condition] * 3)
    channels, *shape = editor.backbone.codec.shape(frames, height, width)
    latents = torch.randn((3, channels, *shape), generator=torch.Generator().manual_seed(0))
    sites = frozenset().union(*editor.backbone.groups.values())
    ways: dict[str, Callable[[], Tensor]] = {
        "a prediction": lambda: editor.predict(latents[:1], 501, condition),
        "an injected prediction": lambda: editor.predict(
            latents, 501, conditions, anyv2v.ShareSource(sites, 3)
        ),
    }
    for name, run in ways.items():
        out = run()
        with use_definitions():
            truth = run()
        if not (off := relative(out, truth)) <= allowed:
            raise Wrong(f"{name} of the network is off by {off:.2g} from that of its definitions")
    # diffusers' class takes latents of four channels only
    if has_diffusers() and channels == 4:
        truth = _predict_by_diffusers(editor, video, latents[:1])
        out = editor.predict(latents[:1], 501, condition)
        if not (off := relative(out, truth)) <= allowed:
            raise Wrong(f"a prediction of the network is off by {off:.2g} from that of diffusers'")


def _predict_by_diffusers(editor: Editor, video: anyv2v.Video, latents: Tensor) -> Tensor:
    from anyv2v.backbones.i2vgen.backbone import image_latents

    backbone, frames = editor.backbone, video.frames
    device, dtype = backbone.device, backbone.dtype
    first = editor.encode_frames(frames[:1])
    embedding = editor.encode_image(frames[0], frames.shape[2])
    t, fps = (torch.tensor([x], device=device) for x in (501, 8))
    theirs = diffusers_twin(backbone.unet)
    return theirs(
        latents.to(device, dtype),
        t,
        fps,
        image_latents(first, len(frames)).to(device, dtype),
        embedding[:, None],
        encoder_hidden_states=editor.encode_text("a word"),
    ).sample
