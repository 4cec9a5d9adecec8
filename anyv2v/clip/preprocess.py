"""The picture that CLIP's image encoder sees."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.media.image import center_crop


@dataclass(frozen=True)
class PreprocessConfig:
    """The encoder's square input in pixels; mean and deviation per channel, of values 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == 3:
            raise InputError(f"preprocess: mean {self.mean} and std {self.std} are not 3 and 3")
        # of values 0..1: beyond this is no picture's
        if not all(abs(m) <= 10 for m in self.mean) or not all(1e-3 <= s <= 10 for s in self.std):
            raise InputError(f"preprocess: mean {self.mean}, std {self.std}: are no picture's")


def preprocess(
    image: np.ndarray, width: int, config: PreprocessConfig, black_edge: bool = False
) -> Tensor:
    """uint8 RGB (h, w, 3) to float32 (1, 3, size, size), contiguous.

    `width` is the width of the video: the image is first cropped to a square of that side, then
    resized, as the original does (TIGER-AI-Lab/AnyV2V, i2vgen-xl). `black_edge`: see `center_crop`.
    """
    square = Image.fromarray(center_crop(image, (width, width), black_edge))
    small = square.resize((config.size, config.size), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(small).transpose(2, 0, 1).copy()).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return ((x - mean) / std)[None]
