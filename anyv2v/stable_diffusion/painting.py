"""A picture by Stable Diffusion under a prompt, begun from another picture or from noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.runtime.finite import FiniteCheck, check_finite, describe_steps
from anyv2v.stable_diffusion.loading import StableDiffusion
from anyv2v.stable_diffusion.schedule import ddim_start, sample_ddim
from anyv2v.stable_diffusion.unet import ImageContext


@dataclass(frozen=True)
class Painting:
    """How it is painted. InputError: a value with which it cannot be."""

    steps: int = 50
    strength: float = 1.0
    """How far back to noise the picture goes: 0.6 runs the last six tenths of the steps; 1 begins
    with noise alone.
    """
    guidance: float = 7.5
    """How much the prompt counts against the negative one."""
    negative: str = ""

    def __post_init__(self):
        checks.whole("steps", self.steps, 1, 999)
        checks.finite("guidance", self.guidance)
        if not checks.fraction("strength", self.strength) * self.steps >= 1:
            raise InputError(f"strength: {self.strength} of {self.steps} steps is not one step")

    @property
    def first(self) -> int:
        """The step that is run first."""
        return self.steps - int(self.steps * self.strength)


@torch.no_grad()
def paint(
    model: StableDiffusion,
    pixels: Tensor,
    prompt: str,
    noise: Tensor,
    how: Painting,
    image: ImageContext | None = None,
    residuals: Sequence[Tensor] = (),
) -> Tensor:
    """Pixels (1, 3, h, w) in -1..1 -> the painted ones, about -1..1.

    noise: float32, in the shape of the picture's latents, of variance 1. image, residuals: what
    `UNet2D` takes, image of two rows, the first for the branch without the prompt; residuals of
    one, for both. DDIM steps (arXiv 2010.02502) with classifier-free guidance (arXiv 2207.12598);
    what is painted over is noised first, as in SDEdit (arXiv 2108.01073).
    """
    device, dtype = model.device, model.dtype
    context = model.unet.read(model.encode_text(how.negative, prompt))
    residuals = [feature.expand(2, -1, -1, -1) for feature in residuals]

    def predict(t: float, latents: Tensor) -> Tensor:
        rows = latents.to(dtype).expand(2, -1, -1, -1)
        times = torch.full((2,), t, device=device)
        plain, wanted = model.unet(rows, times, context, image, residuals).float().chunk(2)
        return plain + how.guidance * (wanted - plain)

    latents = noise.to(device)
    if how.strength < 1:
        clean = model.vae.encode(pixels.to(device, dtype))
        latents = ddim_start(clean, latents, model.schedule, how.steps, how.first)
    check = FiniteCheck(
        describe_steps("the image editor's network", how.steps, dtype, [how.guidance])
    )
    latents = sample_ddim(predict, latents, model.schedule, how.steps, None, how.first, check)
    return check_finite(model.vae.decode(latents.to(dtype)), "the image editor's decoder", dtype)
