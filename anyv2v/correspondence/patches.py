"""Correspondence by patches: for each pixel of a frame, the pixel of other frames most alike.

A patch is the square of pixels around a pixel. Beyond its border a picture is continued by the
pixels at the border. Patches are compared by the mean of the squared differences of their levels,
0 to 255, over pixels and colors. Nothing is assumed about how things move, so that what turns,
bounces or comes back is found again, which optical flow between two distant frames fails at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError

EXACT = 8192
"""Most pixels of a frame that are all compared with all. Larger frames are halved until they have
no more, and the matches are refined from one size to the next."""
BLOCK = {"cpu": 2**21, "cuda": 2**25}
"""Device -> the most comparisons of two patches that are held at once, 4 bytes each. A GPU would
spend its time on launching kernels for blocks that fit into the cache of a CPU."""
FAR = 20.0
"""What a match as far away as the frame is wide costs, in mean squared levels. The cost grows with
the square of the distance, and the width is that of a square with the frame's area. In a frame of
32x32 the cost is 0.02 for a distance of one pixel. It decides between patches that are alike."""
APART = 3
"""How many pixels a rival lies away from the best match at least, along one of the axes, at the
size at which all patches are compared."""


class Matches(NamedTuple):
    """The most alike pixel of the references for each pixel of a frame (h, w).

    The tensors are on the device of the frame.
    """

    index: Tensor
    """int64 (h, w): index of the matched pixel among the r * h * w pixels of the references."""
    distance: Tensor
    """float32 (h, w): root mean square of the differences of the two patches, in levels."""
    rival: Tensor | None = None
    """float32 (h, w): the same for the best match in the same reference that is not close to the
    matched pixel, see `APART`. Where it is not clearly larger than `distance`, the match is
    ambiguous. None unless asked for."""

    def take(self, values: Tensor) -> Tensor:
        """Returns (h, w, ...): the matched values of (r, h, w, ...), one for each pixel."""
        return values.flatten(0, 2)[self.index]


def match_patches(
    frame: Tensor | np.ndarray,
    references: Tensor | np.ndarray,
    radius: int = 2,
    rivals: bool = False,
) -> Matches:
    """Finds for each pixel of a frame the pixel of the references with the most alike patch.

    frame: uint8 RGB (h, w, 3). references: uint8 RGB (r, h, w, 3), on the same device. radius: a
    patch has 2 * radius + 1 pixels a side. rivals: also find the distance of the second match, see
    `Matches.rival`; in large frames it is that of the size at which all patches are compared.

    The match has the smallest mean squared difference plus the cost of its distance, see `FAR`.
    Up to `EXACT` pixels (8192) it is exact: all pairs of patches are compared, in integers. Larger
    frames are compared so at the first size below, halved by the mean of 2x2 pixels. At each next
    size the candidates are then the match of the pixel's parent and the 8 pixels around it, and the
    matches of the 4 parents beside. Memory is about 75 bytes per pixel of the references with the
    default radius. Raises InputError if dtypes or shapes do not fit.
    """
    frame, references = _levels("frame", frame, 3), _levels("references", references, 4)
    radius = checks.whole("radius", radius, 0, 8)
    if references.shape[1:] != frame.shape or not frame.numel() or not len(references):
        raise InputError(
            f"references: {tuple(references.shape)} are no frames of the size of the frame, "
            f"{tuple(frame.shape)}"
        )
    sizes = [(frame[None], references)]
    while sizes[-1][0][0, ..., 0].numel() > EXACT:
        a, b = sizes[-1]
        sizes.append((_halved(a), _halved(b)))
    matches = _match_all(*sizes.pop(), radius, rivals)
    while sizes:
        matches = _refine(*sizes.pop(), radius, matches)
    return matches


def _match_all(frame: Tensor, references: Tensor, radius: int, rivals: bool) -> Matches:
    """Compares every patch of (1, h, w, 3) with every patch of (r, h, w, 3).

    The levels are whole numbers of at most 8 bits and their sums stay below 2**24, so the squared
    distances |a|^2 - 2 ab + |b|^2 are exact in float32, in any order and with TF32 as well.
    """
    (r, h, w, _), device = references.shape, frame.device
    ours, theirs = (_patches(x, radius).float() for x in (frame, references))
    our_norms, their_norms = (x.square().sum(1) for x in (ours, theirs))
    values = ours.shape[1]
    rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
    cost = FAR / (h * w) * values
    across = cost * (columns[:, None] - columns).square()[None, :, None, None]
    parts = []
    for begin, end in _blocks(h, w * len(theirs), device):
        block = slice(begin * w, end * w)
        squares = torch.addmm(their_norms, ours[block], theirs.T, alpha=-2)
        squares += our_norms[block, None]
        costs = squares.view(end - begin, w, r, h, w)
        costs += cost * (rows[begin:end, None] - rows).square()[:, None, None, :, None]
        costs += across
        index = squares.argmin(1)
        second = _rivals(squares.view(-1, r, h, w), index) if rivals else index
        parts.append((index, second))
    index, second = (torch.cat(part) for part in zip(*parts, strict=True))

    def distance(index: Tensor) -> Tensor:
        squares = our_norms - 2 * (ours * theirs[index]).sum(1) + their_norms[index]
        return (squares / values).sqrt().view(h, w)

    return Matches(index.view(h, w), distance(index), distance(second) if rivals else None)


def _rivals(costs: Tensor, best: Tensor) -> Tensor:
    """Index of the best match that is not close to the best of all, in the same reference.

    costs: (n, r, h, w). best, and the result: (n,) int64, indices into r * h * w. In a frame so
    small that all of it is close, the result is `best`.
    """
    n, _, h, w = costs.shape
    reference, y, x = best // (h * w), best // w % h, best % w
    mine = costs[torch.arange(n, device=best.device), reference]
    rows, columns = (torch.arange(size, device=best.device) for size in (h, w))
    near_y = (rows - y[:, None]).abs() < APART
    near_x = (columns - x[:, None]).abs() < APART
    mine.masked_fill_(near_y[:, :, None] & near_x[:, None, :], torch.inf)
    least, index = mine.flatten(1).min(1)
    return torch.where(least.isfinite(), reference * (h * w) + index, best)


def _refine(frame: Tensor, references: Tensor, radius: int, coarse: Matches) -> Matches:
    """Carries matches from half the size to that of the frame (1, h, w, 3)."""
    (r, h, w, _), device = references.shape, frame.device
    ours, theirs = _patches(frame, radius), _patches(references, radius)
    index, distance = [], []
    for begin, end in _blocks(h, 16 * w * ours.shape[1], device):
        y = torch.arange(begin, end, device=device)[:, None]
        x = torch.arange(w, device=device)
        reference, cy, cx = _candidates(coarse.index, (r, h, w), y, x)
        candidates = (reference * h + cy) * w + cx
        apart = (cy - y[None]).square() + (cx - x).square()
        mine = ours[begin * w : end * w].view(end - begin, w, -1).float()
        squares = [(theirs[c].float() - mine).square().mean(-1) for c in candidates]
        squares = torch.stack(squares)
        best = (squares + FAR / (h * w) * apart).argmin(0, keepdim=True)
        index.append(candidates.gather(0, best)[0])
        distance.append(squares.gather(0, best)[0].sqrt())
    rival = coarse.rival
    if rival is not None:
        rival = rival.repeat_interleave(2, 0).repeat_interleave(2, 1)[:h, :w]
    return Matches(torch.cat(index), torch.cat(distance), rival)


def _candidates(
    coarse: Tensor, size: tuple[int, int, int], y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates for the pixels of rows y (k, 1) and columns x (w,): reference, row, column.

    Each is int64 (13, k, w). coarse: indices (h', w') at half the size. size: (r, h, w).
    """
    _, h, w = size
    height, width = coarse.shape
    found = []
    for dy, dx in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
        py, px = (y // 2 + dy).clamp(0, height - 1), (x // 2 + dx).clamp(0, width - 1)
        match = coarse[py, px]
        # the pixel lies in the match as it lies in its parent, or beside its neighbor's parent
        row, column = match // width % height * 2 + y - 2 * py, match % width * 2 + x - 2 * px
        found.append((match // (height * width), row, column))
    reference, row, column = found[0]
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    found += [(reference, row + i, column + j) for i, j in steps]
    reference, row, column = (torch.stack(part) for part in zip(*found, strict=True))
    return reference, row.clamp(0, h - 1), column.clamp(0, w - 1)


def _patches(pictures: Tensor, radius: int) -> Tensor:
    """The patches of uint8 (n, h, w, 3) as rows of int8 (n * h * w, values), levels less 128."""
    _, h, w, _ = pictures.shape
    rows, columns = (
        torch.arange(-radius, size + radius, device=pictures.device).clamp(0, size - 1)
        for size in (h, w)
    )
    padded = (pictures.short() - 128).to(torch.int8)[:, rows][:, :, columns]
    side = 2 * radius + 1
    return padded.unfold(1, side, 1).unfold(2, side, 1).reshape(-1, 3 * side * side)


def _halved(pictures: Tensor) -> Tensor:
    """Means of 2x2 pixels of uint8 (n, h, w, 3), rounded; of fewer at the ends of odd sides."""
    means = F.avg_pool2d(pictures.permute(0, 3, 1, 2).float(), 2, ceil_mode=True)
    return means.round().to(torch.uint8).permute(0, 2, 3, 1)


def _blocks(rows: int, values: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Divides `rows` into blocks (begin, end) with at most `BLOCK` values, or of one row.

    values: number of values in a row.
    """
    size = max(1, BLOCK.get(device.type, BLOCK["cpu"]) // values)
    return ((begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _levels(name: str, pictures: Tensor | np.ndarray, ndim: int) -> Tensor:
    if not isinstance(pictures, Tensor):
        # a copy, because numpy arrays may be read-only
        pictures = torch.from_numpy(checks.kind(name, pictures, np.ndarray, "an array").copy())
    if pictures.dtype != torch.uint8 or pictures.ndim != ndim or pictures.shape[-1] != 3:
        shape = "(h, w, 3)" if ndim == 3 else "(r, h, w, 3)"
        raise InputError(
            f"{name} must be uint8 {shape} RGB, not {pictures.dtype} {tuple(pictures.shape)}"
        )
    return pictures
