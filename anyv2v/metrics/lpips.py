"""LPIPS, the learned perceptual distance of pictures (Zhang et al. 2018), by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from anyv2v.errors import InputError

NET = "alex"
"""The network whose features are compared: the variant that the authors recommend for scores."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""A function of two batches of pictures, float32 (n, 3, h, w) in 0..1: their mean distance."""


def load() -> Distance:
    """Loads LPIPS with AlexNet, on the CPU.

    torchvision downloads its weights unless they are in its cache. Raises InputError if
    torchmetrics or torchvision is not installed or broken, or if there are no weights.
    """
    try:
        # torchmetrics itself begins without it
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
        from torchmetrics.image.lpip import (  # pyright: ignore[reportMissingImports]
            LearnedPerceptualImagePatchSimilarity,
        )
    except ImportError as error:
        raise InputError(
            "LPIPS is computed by torchmetrics and torchvision, one of which is missing: "
            "pip install '.[lpips]'"
        ) from error
    except RuntimeError as error:
        raise InputError(f"LPIPS: torchvision does not fit this torch: {error}") from error
    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=NET, normalize=True)
    except OSError as error:
        raise InputError(
            f"LPIPS: the weights of AlexNet could not be downloaded: {error}"
        ) from error
    return metric.eval()


@torch.no_grad()
def lpips(
    a: np.ndarray,
    b: np.ndarray,
    distance: Distance,
    region: np.ndarray | None = None,
) -> float:
    """Returns the mean LPIPS of the frames of two clips, uint8 RGB (f, h, w, 3).

    distance: what `load` returned. region: bool (f, h, w); pixels outside of it are made black
    in both clips before they are compared. None compares whole frames.
    """
    if region is not None:
        a, b = (np.where(region[..., None], x, np.uint8(0)) for x in (a, b))
    total = 0.0
    for pair in zip(a, b, strict=True):
        first, second = (torch.tensor(x).permute(2, 0, 1)[None].float() / 255 for x in pair)
        total += float(distance(first, second))
    return total / len(a)
