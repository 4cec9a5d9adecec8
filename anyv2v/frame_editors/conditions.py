"""Condition pictures of T2I-Adapters (edges, depth, colors) and the features made from them."""

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
"""What a condition picture shows: white edges ("canny") or strokes ("sketch") on black, depth with
near parts in white ("depth"), or patches of color ("color", the published name, or "colour")."""

GRADIENTS = 100, 200
"""The low and high threshold of Canny's detector for 8-bit levels: a pixel is an edge if its
gradient exceeds the high one, or exceeds the low one and is connected to an edge."""
PATCH = 64
"""About the side of a patch of color, in pixels; a whole number of patches fills each side."""


def check_condition(kind: str, condition: str) -> None:
    """Raises InputError if there is no condition picture of this kind.

    kind: a value of `Kind`; others are refused. condition: the path of a picture, or "" for one
    made from the frame, which is possible for canny and color but not for sketch and depth.
    """
    checks.one_of("kind", kind, get_args(Kind))
    if kind in ("sketch", "depth") and not condition:
        raise InputError(f"kind {kind}: needs the option condition, a picture of that kind")


@torch.no_grad()
def adapter_residuals(
    folder: str, kind: str, condition: str, scale: float, frame: np.ndarray, model: StableDiffusion
) -> list[Tensor]:
    """Computes the features of a condition picture with a T2I-Adapter, multiplied by `scale`.

    Returns the argument `residuals` of `UNet2D.forward` for a batch of one: a tensor (1, h', w', c)
    for each level. folder: the adapter's weights. kind, condition: see `check_condition`. frame:
    uint8 RGB (h, w, 3), at the size at which it is painted. Raises InputError if the adapter is
    damaged or does not fit the UNet of `model`, and as `condition_picture`.
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
    """Returns the input of a T2I-Adapter, (1, channels, h, w) float32 in 0..1 on the CPU.

    kind, condition: see `check_condition`; a picture that is given is stretched to the size of the
    frame. frame: uint8 RGB (h, w, 3). channels: 1 for gray, 3 for RGB. Raises InputError if the
    picture cannot be read or made from the frame.
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
    """Returns the edges of a frame, white on black (Canny 1986, thresholds GRADIENTS).

    The frame and the result are uint8 RGB (h, w, 3). Raises InputError if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "canny edges are found by OpenCV, which is missing: pip install '.[canny]'; or "
            "give a picture of them, option condition"
        ) from error
    return np.repeat(cv2.Canny(np.ascontiguousarray(frame), *GRADIENTS)[..., None], 3, axis=2)


def patches(frame: np.ndarray) -> np.ndarray:
    """Returns a frame in which every patch of about PATCH x PATCH pixels has its mean color.

    The frame and the result are uint8 RGB (h, w, 3).
    """
    h, w = frame.shape[:2]
    grid = max(1, round(w / PATCH)), max(1, round(h / PATCH))
    small = Image.fromarray(frame).resize(grid, Image.Resampling.BOX)
    return np.array(small.resize((w, h), Image.Resampling.NEAREST))
