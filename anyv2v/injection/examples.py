"""Published methods of injection, written as `Taps`: models for a method of your own.

    sites = [site for site in editor.sites if site.startswith("up.3") and site.endswith(".self")]
    editor.edit(source, frame, prompt, taps=SourceValues(sites, until=0.2))

Taps are called after AnyV2V's own injection, which stays on. To replace it, also pass
`injection=anyv2v.Injection.none()`. To keep its residual features ("conv") and replace its queries
and keys, pass `anyv2v.Injection(spatial=0, temporal=0)`. `until` is the fraction of the steps,
counted from the noisiest, in which the taps are active, as in `Injection`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v import checks
from anyv2v.injection.taps import Feature, Taps


class _FirstSteps(Taps):
    """Taps at some sites, active in the first `until` of the steps."""

    def __init__(self, sites: Iterable[str], until: float):
        self.sites, self.until = checks.names("sites", sites), checks.fraction("until", until)

    def active(self, step: int, steps: int) -> bool:
        return step < int(steps * self.until)


class SourceValues(_FirstSteps):
    """Injects the source's values into self-attentions, as RF-Solver-Edit does (arXiv 2411.04746).

    sites: names of self-attentions. until: fraction of the steps, counted from the noisiest, in
    which the taps are active.
    """

    def __init__(self, sites: Iterable[str], until: float = 0.2):
        super().__init__(sites, until)

    def qkv(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q and k unchanged, and the source's values for every branch; see `Taps.qkv`."""
        return q, k, self.source(v)


class SourceQueries(_FirstSteps):
    """Injects the source's queries alone, which carry motion and some identity (arXiv 2412.07750).

    sites: names of self-attentions. until: fraction of the steps, counted from the noisiest, in
    which the taps are active.
    """

    def __init__(self, sites: Iterable[str], until: float = 0.5):
        super().__init__(sites, until)

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the source's queries for every branch, and k unchanged; see `Taps.qk`."""
        return self.source(q), k


class OutsideOfMask(_FirstSteps):
    """Injects AnyV2V's features outside of a mask only, as FREE-Edit does (arXiv 2603.01164).

    `mask` (h, w) of any dtype is nonzero where the video is edited, and is the same for all frames;
    FREE-Edit computes it where the first frames differ, and moves it with the video. `sites` may
    name residual features and self-attentions; there these taps override an `Injection`. `until`:
    fraction of the steps, counted from the noisiest, in which the taps are active.
    """

    def __init__(self, sites: Iterable[str], mask: np.ndarray | Tensor, until: float = 0.5):
        super().__init__(sites, until)
        self.mask = torch.as_tensor(mask) != 0

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """Returns (h,), (v,) or (q, k, v): h, v, or q and k, are the source's outside of the mask.

        Within the mask, and in the v beside q and k, each branch has its own values.
        """
        # unmodified: an `Injection` at the same site has already put the source's everywhere
        *q_and_k, last = feature.unmodified.compute()
        x = getattr(feature.unmodified, "x", last)
        if q_and_k:
            return *(self.outside(y, x.shape[1:4]) for y in q_and_k), last
        # h (g b f, h, w, c), or (g b, f, h, w, c), as tokens of one head
        tokens = last if last.ndim < x.ndim else last.flatten(1, -2)[..., None]
        return (self.outside(tokens, x.shape[1:4]).reshape(last.shape),)

    def outside(self, x: Tensor, grid: Sequence[int] = ()) -> Tensor:
        """Returns x (..., tokens, heads, d), with the source's values outside of the mask.

        grid: (f, h, w) if the tokens of all f frames may be one sequence, as in Wan. Raises
        ValueError if no grid of the mask has as many tokens as a frame, see `token_mask`.
        """
        frames = grid[0] if x.shape[1] == math.prod(grid) else 1
        edited = token_mask(self.mask, x.shape[-3] // frames).repeat(frames).to(x.device)
        return torch.where(edited[:, None, None], x, self.source(x))


def token_mask(mask: Tensor, tokens: int) -> Tensor:
    """Returns bool (tokens,): whether each token of a frame, row by row, holds a pixel of the mask.

    mask: (h, w) bool. tokens: the number of tokens of a frame; each is a square of pixels whose
    side is a power of two. Raises ValueError if no such grid has that many tokens.
    """
    grid = mask[None].float()
    while grid.numel() > tokens:
        # odd sizes are rounded up, as in the network
        grid = F.max_pool2d(grid, 2, ceil_mode=True)
    if grid.numel() != tokens:
        height, width = mask.shape
        raise ValueError(f"a mask of {height}x{width} has no grid of {tokens} tokens")
    return grid.flatten() > 0
