"""Rotary position embedding (arXiv 2104.09864) by frame, row and column of a token."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0
"""The slowest pair of channels turns about 1 / `THETA` radians from one position to the next."""


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of a head's channels turn by the frame, the row and the column of a token.

    Rows and columns get a third each, rounded down to pairs, and frames the rest: 44, 42 and 42 of
    128 channels.
    """
    plane = 2 * (head_dim // 6)
    return head_dim - 2 * plane, plane, plane


def rotations(grid: tuple[int, ...], head_dim: int, device: torch.device) -> Tensor:
    """Returns the rotation of each pair of a head's channels at each token: complex128, of norm 1.

    grid: (f, h, w), the numbers of frames, rows and columns of tokens. The result is
    (f, h, w, head_dim / 2). Of an axis that has m channels, pair j turns by p / THETA^(2j / m)
    radians at position p, which is a whole number from 0.
    """
    axes = []
    for axis, (length, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
        positions = torch.arange(length, dtype=torch.float64, device=device)
        # dim is 0 for the planes of heads with fewer than 6 channels, and then there are no pairs
        angles = positions[:, None] * THETA ** (-pairs / max(dim, 1))
        shape = [length if i == axis else 1 for i in range(3)]
        turned = torch.polar(torch.ones_like(angles), angles)
        axes.append(turned.view(*shape, -1).expand(*grid, -1))
    return torch.cat(axes, dim=-1)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Rotates pairs of neighboring channels of x (b, f, h, w, heads, d), float32 or float64.

    by: the result of `rotations` for this grid. Channels 2j and 2j + 1 are a point of the complex
    plane, which is multiplied by by[..., j], in the dtype of x.
    """
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by.to(pairs.dtype)[..., None, :]).flatten(-2)
