"""Shared by the editors with diffusion weights: working size, noise, and painting over a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from anyv2v.frame_editors.base import FrameRequest
from anyv2v.media.image import fit_frame, to_frames, to_pixels
from anyv2v.stable_diffusion.loading import StableDiffusion
from anyv2v.stable_diffusion.painting import Painting, paint
from anyv2v.stable_diffusion.unet import ImageContext


def working_size(size: tuple[int, int], longer: int, factor: int) -> tuple[int, int]:
    """The size (width, height) at which a frame of `size` is edited.

    The longer side becomes `longer`, in proportion, and each side is rounded to the nearest
    multiple of `factor`: the frame is stretched by up to half of that, and back afterwards.
    """
    scale = longer / max(size)
    width, height = (max(factor, factor * round(side * scale / factor)) for side in size)
    return width, height


def working_frame(frame: np.ndarray, longer: int, model: StableDiffusion) -> np.ndarray:
    """A frame, uint8 (h, w, 3), at its `working_size`."""
    h, w = frame.shape[:2]
    size = working_size((w, h), longer, model.vae.config.spatial_compression)
    return fit_frame(frame, size, "stretch")


def noise_source(frame: np.ndarray, model: StableDiffusion, seed: int) -> Callable[[], Tensor]:
    """A function that draws float32 noise of variance 1 in the shape of a frame's latents.

    frame: at its working size. Noise is drawn on the CPU, so that a seed gives the same noise on
    every device, and returned on the model's device.
    """
    (h, w), config = frame.shape[:2], model.vae.config
    factor = config.spatial_compression
    shape = 1, config.latent_channels, h // factor, w // factor
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator).to(model.device)


def paint_each(
    model: StableDiffusion,
    request: FrameRequest,
    frame: np.ndarray,
    seeds: Sequence[int],
    how: Painting,
    image: ImageContext | None = None,
    residuals: Sequence[Tensor] = (),
) -> list[np.ndarray]:
    """Paints over a frame once for each seed: uint8 (h, w, 3), of the size of the request's frame.

    frame: that of the request at its working size. how, image, residuals: see `paint`.
    """
    (height, width), pixels = request.frame.shape[:2], to_pixels(frame[None])
    painted = []
    for seed in seeds:
        noise = noise_source(frame, model, seed)()
        out = paint(model, pixels, request.instruction, noise, how, image, residuals)
        painted.append(fit_frame(to_frames(out)[0], (width, height), "stretch"))
    return painted
