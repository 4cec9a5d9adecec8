"""InstructPix2Pix (arXiv 2211.09800): edits a picture by an instruction.

MagicBrush (arXiv 2306.10012) is the same network with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.painting import noise_source, working_frame
from anyv2v.media.image import fit_frame, to_frames, to_pixels
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.runtime.finite import FiniteCheck, check_finite, describe_steps
from anyv2v.stable_diffusion.loading import StableDiffusion, load
from anyv2v.stable_diffusion.schedule import OnStep, sample_euler_ancestral


@dataclass(frozen=True)
class InstructPix2Pix:
    """Edits by an instruction ("make him wear a red shirt"), with a diffusion model."""

    weights: str
    """The folder that `anyv2v convert` made from InstructPix2Pix or MagicBrush."""
    steps: int = 100
    """Number of sampling steps, 1 to 999."""
    guidance: float = 7.5
    """Scale of the guidance with the instruction: a larger one follows it more closely."""
    image_guidance: float = 1.5
    """Scale of the guidance with the frame: a larger one keeps more of it."""
    size: int = 512
    """Length of the frame's longer side while it is edited, in pixels."""
    device: str | torch.device | None = None
    """Where the model runs, such as "cuda:1"; None uses the GPU if there is one, else the CPU."""
    dtype: torch.dtype | None = None
    """Floating-point type of the model; None uses float16 on a GPU and float32 on the CPU."""

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction", "seed"})

    def __post_init__(self):
        checks.whole("steps", self.steps, 1, 999)
        checks.finite("guidance", self.guidance)
        checks.finite("image_guidance", self.image_guidance)
        checks.whole("size", self.size, 8, 2**14)

    @torch.no_grad()
    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns an edited frame for each seed; see `FrameEditor`.

        Raises InputError if there is no instruction or the weights cannot be loaded, and
        NotFiniteError if the model produces infinities or NaN.
        """
        if not request.instruction.strip():
            raise InputError("InstructPix2Pix needs an instruction")
        device = choose_device(self.device)
        model = load(self.weights, device, choose_dtype(self.dtype, device), in_channels=8)
        frame, size = working_frame(request.frame, self.size, model), request.frame.shape[1::-1]
        pixels = to_pixels(frame[None])
        edited_frames = []
        for seed in seeds:
            draw = noise_source(frame, model, seed)
            edited = edit(
                model,
                pixels,
                request.instruction,
                draw(),
                draw,
                self.steps,
                self.guidance,
                self.image_guidance,
            )
            edited_frames.append(fit_frame(to_frames(edited)[0], size, "stretch"))
        return edited_frames


def edit(
    model: StableDiffusion,
    pixels: Tensor,
    instruction: str,
    noise: Tensor,
    draw: Callable[[], Tensor],
    steps: int = 100,
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    on_step: OnStep | None = None,
) -> Tensor:
    """Edits a picture by an instruction; returns pixels (1, 3, h, w), about in -1..1.

    model: InstructPix2Pix or MagicBrush. pixels: the picture, (1, 3, h, w) in -1..1. noise: where
    sampling starts, float32 of variance 1 in the shape of the picture's latents. draw: returns
    fresh noise of the same kind, once per step. steps, guidance, image_guidance: see
    `InstructPix2Pix`. on_step: called after each step with its index and the latents. Raises
    NotFiniteError if the model produces infinities or NaN.
    """
    picture, _ = model.vae.posterior(pixels.to(model.device, model.dtype))
    # concatenated with the latents of the three branches: text and picture, picture, neither.
    # unlike elsewhere, the posterior mean is not scaled
    condition = torch.cat([picture, picture, torch.zeros_like(picture)])
    context = model.unet.read(model.encode_text(instruction, "", ""))

    def predict(t: float, latents: Tensor) -> Tensor:
        batch = latents.to(model.dtype).expand(3, -1, -1, -1)
        timesteps = torch.full((3,), t, device=model.device)
        predictions = model.unet(torch.cat([batch, condition], dim=1), timesteps, context)
        return guide(predictions.float(), guidance, image_guidance)

    noise = noise.to(model.device)
    strongest = max(guidance, image_guidance, key=abs)
    check = FiniteCheck(
        describe_steps("the image editor's network", steps, model.dtype, [strongest])
    )
    latents = sample_euler_ancestral(predict, noise, model.schedule, steps, draw, on_step, check)
    pixels = model.vae.decode(latents.to(model.dtype))
    return check_finite(pixels, "the image editor's decoder", model.dtype)


def guide(predictions: Tensor, guidance: float, image_guidance: float) -> Tensor:
    """Combines three noise predictions by classifier-free guidance (arXiv 2211.09800, eq. 3).

    predictions: (3, ...), with text and picture, with the picture alone, and with neither.
    guidance, image_guidance: the scales for text and picture. Returns (1, ...).
    """
    both, picture, neither = predictions.split(1)
    return neither + image_guidance * (picture - neither) + guidance * (both - picture)
