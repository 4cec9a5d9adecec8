"""What the editors with diffusion models share: working size, noise, and painting over a frame."""

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
    """Returns the size (width, height) at which a frame of `size` (width, height) is edited.

    The frame is scaled so that its longer side is `longer` pixels, and each side is rounded to the
    nearest multiple of `factor`, at least one, so its proportions may change by a few pixels.
    """
    scale = longer / max(size)
    width, height = (max(factor, factor * round(side * scale / factor)) for side in size)
    return width, height


def working_frame(frame: np.ndarray, longer: int, model: StableDiffusion) -> np.ndarray:
    """Resizes a frame, uint8 RGB (h, w, 3), to the size at which `model` edits it.

    longer: the length of its longer side in pixels; see `working_size`.
    """
    h, w = frame.shape[:2]
    size = working_size((w, h), longer, model.vae.config.spatial_compression)
    return fit_frame(frame, size, "stretch")


def noise_source(frame: np.ndarray, model: StableDiffusion, seed: int) -> Callable[[], Tensor]:
    """Returns a function that draws float32 noise of variance 1 in the shape of a frame's latents.

    frame: uint8 RGB (h, w, 3) at its working size. Each call draws new noise, on the CPU, so that a
    seed leads to the same noise on every device, and returns it on the model's device.
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
    """Paints the instruction of a request over a frame, once for each seed, with Stable Diffusion.

    Returns uint8 RGB (h, w, 3) for each seed, at the size of the request's frame. frame: the
    request's frame at its working size. how: the settings. image, residuals: what an IP-Adapter and
    a T2I-Adapter contribute, see `paint`.
    """
    (height, width), pixels = request.frame.shape[:2], to_pixels(frame[None])
    painted = []
    for seed in seeds:
        noise = noise_source(frame, model, seed)()
        out = paint(model, pixels, request.instruction, noise, how, image, residuals)
        painted.append(fit_frame(to_frames(out)[0], (width, height), "stretch"))
    return painted
