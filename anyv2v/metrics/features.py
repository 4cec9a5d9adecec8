"""Metrics of features and latents: what a network sees in the frames of a clip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def matched_cosine(features: Tensor, reference: Tensor) -> float:
    """Returns how well each place of a clip's frames is found again in a reference frame.

    features: (f, h, w, c), a vector for each place of each frame. reference: (h', w', c). It is the
    mean over all places of the greatest cosine with any place of the reference, in float32; 1 if
    each frame is made of places of the reference.
    """
    theirs = F.normalize(reference.float().flatten(0, 1), dim=-1)
    # frame by frame: all cosines of a clip at once would be large
    best = [
        (F.normalize(frame.float().flatten(0, 1), dim=-1) @ theirs.T).amax(1) for frame in features
    ]
    return float(sum(float(x.double().mean()) for x in best) / len(best))


def distances(latents: Tensor, lag: int | None = None) -> list[float]:
    """Returns how far the latents of each frame are from those of an earlier one.

    latents: (1, c, f, h, w). lag: how many frames earlier; None is frame 0, and 1 the frame before.
    The distance is the root mean square of the differences of all values of a frame. The first
    element, and with a lag the first `lag` elements, are 0.
    """
    frames = latents[0].double().transpose(0, 1)
    others = [frames[max(0, i - lag) if lag else 0] for i in range(len(frames))]
    pairs = zip(frames, others, strict=True)
    return [float((frame - other).square().mean().sqrt()) for frame, other in pairs]
