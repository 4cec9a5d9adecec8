"""Correspondence by features: values of reference frames, carried to the places that look alike.

The features are those of a diffusion network, which tell what a place shows (DIFT, arXiv
2306.03881): those of one thing are alike in two frames, wherever it is and however it is turned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DECISIVE = 0.2
"""A difference of cosines that decides between places. If that of one place is greater by this than
those of all others, its weight is that of all others together, whatever the number of places."""


def carry_by_features(
    features: Sequence[Tensor], references: Sequence[Tensor], values: Tensor
) -> Tensor:
    """Carries values of reference frames to each frame of a clip, by the likeness of features.

    features: for each reference, the features (f, h, w, c) of the clip's frames that compare with
    it. references: those of each reference, (h, w, c). values: (r, d, H, W) of the r references,
    where H and W may be multiples of h and w. Returns (f, d, H, W) in the dtype of `values`.

    At each place it is the mean of the values at all places of all references, weighted by
    exp(cosine / T), times how far these values agree, which is the length of the mean over their
    root mean square length. So what fits everywhere, and therefore says nothing about where it came
    from, is given what all places have in common. T is `DECISIVE` over the logarithm of the number
    of places.

    One more place has the value 0. Its cosine is less by `DECISIVE` than the median, over the clip,
    of the greatest cosine of each place. So what matches nothing well, and is therefore new in the
    clip, is given little or nothing.
    """
    h, w = values.shape[-2:]
    theirs = [_grid(x[None], (h, w))[0] for x in references]
    flat = values.flatten(2).transpose(1, 2).flatten(0, 1)
    squares = flat.square().sum(1, keepdim=True)
    sharpness = math.log(max(len(flat), 2)) / DECISIVE

    def cosines(ours: Sequence[Tensor]) -> Tensor:
        pairs = zip(ours, theirs, strict=True)
        return torch.cat([_grid(x[None], (h, w))[0] @ y.T for x, y in pairs], dim=1)

    clip = [*zip(*features, strict=True)]
    # all cosines of a clip at once would be large, so they are computed twice
    best = torch.cat([cosines(ours).amax(1) for ours in clip])
    unknown = (best.median() - DECISIVE).expand(h * w, 1)
    frames = []
    for ours in clip:
        likeness = torch.cat([cosines(ours), unknown], dim=1)
        weights = (likeness * sharpness).softmax(1)[:, :-1].to(flat.dtype)
        mean, square = weights @ flat, weights @ squares
        length = mean.square().sum(1, keepdim=True)
        # where all values are 0 the mean is 0, whatever it is scaled by
        agreement = (length / square.clamp(min=torch.finfo(square.dtype).tiny)).sqrt()
        frames.append(mean * agreement)
    return torch.stack(frames).transpose(1, 2).unflatten(2, (h, w))


def _grid(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Features (n, h, w, c) as unit vectors at each place of a grid: float32 (n, H * W, c)."""
    features = features.movedim(-1, 1).float()
    if features.shape[2:] != size:
        features = F.interpolate(features, size, mode="bilinear")
    return F.normalize(features.flatten(2).transpose(1, 2), dim=2)
