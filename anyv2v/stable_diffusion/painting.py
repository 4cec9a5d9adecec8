"""Image-to-image generation with Stable Diffusion (SDEdit, arXiv 2108.01073)."""

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
    """Settings of `paint`.

    Raises InputError if a value is out of range, or `strength` is less than one step.
    """

    steps: int = 50
    """Number of steps of the whole schedule, 1 to 999; `strength` says how many of them are run."""
    strength: float = 1.0
    """Fraction of the steps that is run, above 0 and up to 1. With 1 the run begins from noise
    alone. With 0.6 the first four tenths of the steps are skipped, and the run begins from the
    image, noised to the level of the first step that is run.
    """
    guidance: float = 7.5
    """Scale of classifier-free guidance (arXiv 2207.12598); 1 turns it off."""
    negative: str = ""
    """The prompt that guidance leads away from."""

    def __post_init__(self):
        checks.whole("steps", self.steps, 1, 999)
        checks.finite("guidance", self.guidance)
        if not checks.fraction("strength", self.strength) * self.steps >= 1:
            raise InputError(f"strength: {self.strength} of {self.steps} steps is not one step")

    @property
    def first(self) -> int:
        """Index of the first step that is run, counted from 0 for the noisiest of all steps."""
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
    """Generates an image from another image and a prompt.

    The image is noised (SDEdit, arXiv 2108.01073) and then denoised by DDIM (arXiv 2010.02502) with
    classifier-free guidance.

    pixels: the image to begin with, (1, 3, h, w) in -1..1. noise: float32 noise of variance 1 in
    the shape of the image's latents. image: context of an IP-Adapter, as `UNet2D.forward` takes it,
    for a batch of two: first the branch of the negative prompt, then that of the prompt; None for
    no adapter. residuals: features of a T2I-Adapter, as `UNet2D.forward` takes them, for a batch of
    one; both branches use the same.

    Returns pixels in the shape of the argument, nominally in -1..1 and not clamped. Raises
    NotFiniteError if latents or pixels have infinite or NaN values.
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
