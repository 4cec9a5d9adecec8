"""Preprocessing of images for CLIP's image encoder."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.media.image import center_crop, crop_box, crop_size


@dataclass(frozen=True)
class PreprocessConfig:
    """Section "preprocess" of a weights folder's config.json.

    Raises InputError if `mean` or `std` does not have three values, or a value is implausible: a
    mean beyond -10..10 or a standard deviation outside of 0.001..10.
    """

    size: int
    """Height and width of the image encoder's input in pixels."""
    mean: tuple[float, ...]
    """Mean of red, green and blue, for pixel values 0..1."""
    std: tuple[float, ...]
    """Standard deviation of red, green and blue, for pixel values 0..1."""

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == 3:
            raise InputError(f"preprocess: mean {self.mean} and std {self.std} are not 3 and 3")
        # pixel values are 0..1, so nothing beyond this can be right
        if not all(abs(m) <= 10 for m in self.mean) or not all(1e-3 <= s <= 10 for s in self.std):
            raise InputError(f"preprocess: mean {self.mean}, std {self.std}: are no picture's")


def preprocess(
    image: np.ndarray, width: int, config: PreprocessConfig, black_edge: bool = False
) -> Tensor:
    """Prepares an image (h, w, 3) uint8 RGB for CLIP: float32 (1, 3, size, size), normalized.

    As in the original code (TIGER-AI-Lab/AnyV2V, i2vgen-xl), the image is first resized and cropped
    to a square of `width` pixels, the width of the video, then resized to `config.size`.
    black_edge: whether to crop with the original's rounding, which at many sizes leaves the first
    row or column black; see `center_crop`. Raises InputError if the image is too narrow to be
    cropped.
    """
    square = Image.fromarray(center_crop(image, (width, width), black_edge))
    small = square.resize((config.size, config.size), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(small).transpose(2, 0, 1).copy()).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return ((x - mean) / std)[None]


def preprocess_standard(frames: np.ndarray, config: PreprocessConfig) -> Tensor:
    """Prepares images for a CLIP that is used as published: float32 (n, 3, size, size), normalized.

    frames: uint8 RGB (n, h, w, 3). The shorter side is scaled to `config.size` by PIL's bicubic
    filter, then the center is cropped, as transformers' CLIPImageProcessor does it. OpenCLIP does
    the same, but for an odd number of surplus pixels crops some sizes one pixel further down or
    right.
    """
    square = (config.size, config.size)
    resized = crop_size((frames.shape[2], frames.shape[1]), square)
    box = crop_box(resized, square)
    small = (Image.fromarray(x).resize(resized, Image.Resampling.BICUBIC) for x in frames)
    x = torch.from_numpy(np.stack([np.array(image.crop(box)) for image in small]))
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
