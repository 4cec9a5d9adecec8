"""Condition pictures of T2I-Adapters: made of the frame or given, and the features made of them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.image import fit_frame, read_image
from anyv2v.stable_diffusion.adapters import load_t2i_adapter
from anyv2v.stable_diffusion.loading import StableDiffusion

Kind = Literal["canny", "sketch", "depth", "color", "colour"]
"""What a condition picture shows: white edges (canny) or strokes (sketch) on black, depth with near
in white, or patches of color. "color" is the published name; "colour" is accepted as well."""

GRADIENTS = 100, 200
"""Canny's thresholds for 8 bits: an edge exceeds the second, or the first and touches an edge."""
PATCH = 64
"""The side of a patch of color, in pixels."""


def check_condition(kind: str, condition: str) -> None:
    """InputError for an unknown kind, or one that cannot be made of the frame and is not given."""
    checks.one_of("kind", kind, get_args(Kind))
    if kind in ("sketch", "depth") and not condition:
        raise InputError(f"kind {kind}: needs the option condition, a picture of that kind")


@torch.no_grad()
def adapter_residuals(
    folder: str, kind: str, condition: str, scale: float, frame: np.ndarray, model: StableDiffusion
) -> list[Tensor]:
    """The features that a T2I-Adapter makes of a condition, times `scale`: `residuals` of `UNet2D`.

    condition: the path of a picture, or "" to make one of the frame, uint8 (h, w, 3). Each feature
    has a batch of one. InputError: an adapter for another model.
    """
    adapter = load_t2i_adapter(folder, model.device, model.dtype)
    config, channels = adapter.config, model.unet.config.level_channels
    factor = model.vae.config.spatial_compression
    if (config.level_channels, config.factor) != (channels, factor):
        raise InputError(
            f"{folder}: is for widths {config.level_channels} and {config.factor} pixels per "
            f"latent; the weights have {channels} and {factor}"
        )
    picture = condition_picture(kind, condition, frame, config.channels)
    return [scale * feature for feature in adapter(picture.to(model.device, model.dtype))]


def condition_picture(kind: str, condition: str, frame: np.ndarray, channels: int) -> Tensor:
    """The input of a T2I-Adapter: (1, channels, h, w), 0 to 1, of the size of the frame.

    condition: see `adapter_residuals`. InputError: canny edges are needed and OpenCV is missing.
    """
    h, w = frame.shape[:2]
    if condition:
        picture = fit_frame(read_image(condition), (w, h), "stretch")
    else:
        check_condition(kind, condition)
        picture = canny(frame) if kind == "canny" else patches(frame)
    levels = np.array(Image.fromarray(picture).convert("L" if channels == 1 else "RGB"))
    pixels = torch.from_numpy(levels).reshape(h, w, channels).permute(2, 0, 1)
    return pixels[None].float() / 255


def canny(frame: np.ndarray) -> np.ndarray:
    """White edges on black of a frame (Canny 1986); both are uint8 (h, w, 3)."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "canny edges are found by OpenCV, which is missing: pip install 'anyv2v[canny]'; or "
            "give a picture of them, option condition"
        ) from error
    return np.repeat(cv2.Canny(np.ascontiguousarray(frame), *GRADIENTS)[..., None], 3, axis=2)


def patches(frame: np.ndarray) -> np.ndarray:
    """The mean colors of a frame in patches of about PATCH pixels; both are uint8 (h, w, 3)."""
    h, w = frame.shape[:2]
    grid = max(1, round(w / PATCH)), max(1, round(h / PATCH))
    small = Image.fromarray(frame).resize(grid, Image.Resampling.BOX)
    return np.array(small.resize((w, h), Image.Resampling.NEAREST))
