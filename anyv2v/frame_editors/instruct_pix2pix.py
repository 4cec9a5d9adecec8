"""InstructPix2Pix (arXiv 2211.09800): edits a picture as an instruction says.

MagicBrush (arXiv 2306.10012) is the same network with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.media.image import to_frames, to_pixels
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.runtime.finite import FiniteCheck, check_finite, describe_steps
from anyv2v.stable_diffusion.loading import StableDiffusion, load
from anyv2v.stable_diffusion.schedule import OnStep, sample_euler_ancestral


@dataclass(frozen=True)
class InstructPix2Pix:
    """Edits as the instruction says ("make him wear a red shirt"), with a diffusion model."""

    weights: str
    """The folder that `anyv2v convert` made of InstructPix2Pix or MagicBrush."""
    steps: int = 100
    guidance: float = 7.5
    """How much the instruction counts."""
    image_guidance: float = 1.5
    """How much the picture counts: more keeps more of it."""
    size: int = 512
    """Pixels of the frame's longer side while it is edited."""
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction", "seed"})

    def __post_init__(self):
        checks.whole("steps", self.steps, 1, 999)
        checks.finite("guidance", self.guidance)
        checks.finite("image_guidance", self.image_guidance)
        checks.whole("size", self.size, 8, 2**14)

    @torch.no_grad()
    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        if not request.instruction.strip():
            raise InputError("InstructPix2Pix needs an instruction")
        device = choose_device(self.device)
        model = load(self.weights, device, choose_dtype(self.dtype, device), channels_in=8)
        height, width = request.frame.shape[:2]
        inside = working_size((width, height), self.size, model.vae.config.factor)
        pixels = to_pixels(_resized(request.frame, inside)[None])
        found = []
        for seed in seeds:
            # drawn on the CPU, so that a seed means the same everywhere
            generator = torch.Generator().manual_seed(seed)
            fresh = self._draw(model, inside, generator)
            edited = edit(
                model,
                pixels,
                request.instruction,
                fresh(),
                fresh,
                self.steps,
                self.guidance,
                self.image_guidance,
            )
            found.append(_resized(to_frames(edited)[0], (width, height)))
        return found

    @staticmethod
    def _draw(
        model: StableDiffusion, size: tuple[int, int], generator: torch.Generator
    ) -> Callable[[], Tensor]:
        config = model.vae.config
        width, height = (side // config.factor for side in size)
        shape = 1, config.latent_channels, height, width
        return lambda: torch.randn(shape, generator=generator).to(model.device)


def edit(
    model: StableDiffusion,
    pixels: Tensor,
    instruction: str,
    noise: Tensor,
    fresh: Callable[[], Tensor],
    steps: int = 100,
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    on_step: OnStep | None = None,
) -> Tensor:
    """pixels (1, 3, h, w) in -1..1 -> the edited ones, about -1..1.

    noise: float32, in the shape of the picture's latents, of variance 1, where sampling begins;
    fresh: draws as much for each step.
    """
    picture, _ = model.vae.posterior(pixels.to(model.device, model.dtype))
    # beside both, the picture alone, neither. unlike elsewhere, these latents are not scaled
    beside = torch.cat([picture, picture, torch.zeros_like(picture)])
    context = model.unet.read(model.encode_text(instruction, "", ""))

    def predict(t: float, latents: Tensor) -> Tensor:
        given = latents.to(model.dtype).expand(3, -1, -1, -1)
        timesteps = torch.full((3,), t, device=model.device)
        found = model.unet(torch.cat([given, beside], dim=1), timesteps, context)
        return guide(found.float(), guidance, image_guidance)

    noise = noise.to(model.device)
    strongest = max(guidance, image_guidance, key=abs)
    check = FiniteCheck(
        describe_steps("the image editor's network", steps, model.dtype, [strongest])
    )
    latents = sample_euler_ancestral(predict, noise, model.schedule, steps, fresh, on_step, check)
    pixels = model.vae.decode(latents.to(model.dtype))
    return check_finite(pixels, "the image editor's decoder", model.dtype)


def guide(found: Tensor, guidance: float, image_guidance: float) -> Tensor:
    """One prediction of three, (3, ...): with text and picture, with the picture, with neither.

    Classifier-free guidance in two directions (arXiv 2211.09800, eq. 3).
    """
    both, picture, neither = found.split(1)
    return neither + image_guidance * (picture - neither) + guidance * (both - picture)


def working_size(size: tuple[int, int], longer: int, factor: int) -> tuple[int, int]:
    """(width, height) with the longer side at `longer`, in proportion, each side a multiple.

    Of `factor`, the nearest: the frame is stretched by up to half of that and back afterwards.
    """
    scale = longer / max(size)
    width, height = (max(factor, factor * round(side * scale / factor)) for side in size)
    return width, height


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
