"""Rotary position embedding (arXiv 2104.09864) of features along the frames of a clip."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_by_frame(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotates pairs of neighboring channels of x (b, f, ..., c) by an angle that grows per frame.

    frequencies (p,): radians per frame of each pair, with p at most c / 2. In frame k channels 2j
    and 2j + 1, for j below p, are rotated as a point of the plane by k * frequencies[j]; the other
    channels stay as they are. Angles, cosines and sines are computed in float32; the result has the
    dtype of x.
    """
    pairs = len(frequencies)
    frames = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    angles = frames[:, None] * frequencies.float()
    # (f, 1, ..., 1, p), to be broadcast over positions and heads
    angles = angles.view(x.shape[1], *(1,) * (x.ndim - 3), pairs)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    rotated = x[..., : 2 * pairs].unflatten(-1, (pairs, 2))
    even, odd = rotated.unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([rotated, x[..., 2 * pairs :]], dim=-1)
