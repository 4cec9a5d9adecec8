"""Painting an image with Stable Diffusion under a prompt, from another image or from noise."""

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
    """Settings of `paint`. Raises InputError for a value that cannot be used."""

    steps: int = 50
    """Steps of the whole schedule, of which `strength` runs a part."""
    strength: float = 1.0
    """Fraction of the steps that are run, the last ones: 0.6 starts from the image with six tenths
    of the noise levels added, 1 from noise alone.
    """
    guidance: float = 7.5
    """Scale of classifier-free guidance (arXiv 2207.12598)."""
    negative: str = ""
    """The prompt that guidance leads away from."""

    def __post_init__(self):
        checks.whole("steps", self.steps, 1, 999)
        checks.finite("guidance", self.guidance)
        if not checks.fraction("strength", self.strength) * self.steps >= 1:
            raise InputError(f"strength: {self.strength} of {self.steps} steps is not one step")

    @property
    def first(self) -> int:
        """Index of the first step that is run."""
        return self.steps - int(self.steps * self.strength)


@torch.no_grad()
def paint(
    model: StableDiffusion,
    pixels: Tensor,
    prompt: str,
    noise: Tensor,
    settings: Painting,
    image: ImageContext | None = None,
    residuals: Sequence[Tensor] = (),
) -> Tensor:
    """Paints over pixels (1, 3, h, w) in -1..1; the result has the same shape, about -1..1.

    noise: float32, of variance 1, in the shape of the image's latents. image: as `UNet2D.forward`
    takes it, for a batch of two, the branch with the negative prompt first. residuals: as
    `UNet2D.forward` takes them, for a batch of one, which both branches get. The image is noised
    (SDEdit, arXiv 2108.01073) and denoised by DDIM steps (arXiv 2010.02502) with classifier-free
    guidance.
    """
    device, dtype = model.device, model.dtype
    context = model.unet.read(model.encode_text(settings.negative, prompt))
    residuals = [feature.expand(2, -1, -1, -1) for feature in residuals]

    def predict(t: float, latents: Tensor) -> Tensor:
        batch = latents.to(dtype).expand(2, -1, -1, -1)
        times = torch.full((2,), t, device=device)
        negative, prompted = model.unet(batch, times, context, image, residuals).float().chunk(2)
        return negative + settings.guidance * (prompted - negative)

    latents = noise.to(device)
    if settings.strength < 1:
        clean = model.vae.encode(pixels.to(device, dtype))
        latents = ddim_start(clean, latents, model.schedule, settings.steps, settings.first)
    check = FiniteCheck(
        describe_steps("the image editor's network", settings.steps, dtype, [settings.guidance])
    )
    latents = sample_ddim(
        predict, latents, model.schedule, settings.steps, None, settings.first, check
    )
    return check_finite(model.vae.decode(latents.to(dtype)), "the image editor's decoder", dtype)
