"""Correspondence by features: values of reference frames, carried to the places that look alike.

The features are those of a diffusion network, which tell what a place shows (DIFT, arXiv
2306.03881): those of one thing are alike in two frames, wherever it is and however it is turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 0.128
"""What a match as far away as the frame is wide costs, in cosines. The cost grows with the square
of the distance, and the width is that of a square with the frame's area. In latents of 8x8 the cost
is 0.002 for a distance of one latent. It decides between places that are alike."""
BEST = 4
"""The number of matches whose values are averaged."""
TEMPERATURE = 0.05
"""Difference of two matches' cosines at which the weight of one is e times that of the other."""


def carry_by_features(
    features: Sequence[Tensor], references: Sequence[Tensor], values: Tensor
) -> Tensor:
    """Carries values of reference frames to each frame of a clip, by the most alike features.

    features: for each reference, the features (f, h, w, c) of the clip's frames that compare with
    it. references: those of each reference, (h, w, c). values: (r, d, H, W) of the r references,
    where H and W may be multiples of h and w. Returns (f, d, H, W) in the dtype of `values`: at
    each place the mean of the values at the best matches in all references, weighted by their
    cosines, see `BEST` and `TEMPERATURE`.
    """
    h, w = values.shape[-2:]
    size = h, w
    theirs = [_grid(x[None], size)[0] for x in references]
    flat = values.flatten(2).transpose(1, 2).flatten(0, 1)
    cost = _distances(h, w, values.device) * (FAR / (h * w))
    frames = []
    for ours in zip(*features, strict=True):
        pairs = zip(ours, theirs, strict=True)
        cosines = torch.cat([_grid(x[None], size)[0] @ y.T - cost for x, y in pairs], dim=1)
        best = cosines.topk(min(BEST, cosines.shape[1]), dim=1)
        weights = (best.values / TEMPERATURE).softmax(1).to(flat.dtype)
        frames.append((weights[:, :, None] * flat[best.indices]).sum(1))
    return torch.stack(frames).transpose(1, 2).unflatten(2, size)


def _grid(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Features (n, h, w, c) as unit vectors at each place of a grid: float32 (n, H * W, c)."""
    features = features.movedim(-1, 1).float()
    if features.shape[2:] != size:
        features = F.interpolate(features, size, mode="bilinear")
    return F.normalize(features.flatten(2).transpose(1, 2), dim=2)


def _distances(h: int, w: int, device: torch.device) -> Tensor:
    """Squared distances between all places of a grid, float32 (h * w, h * w)."""
    y, x = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    return (places[:, None] - places).square().sum(2)
