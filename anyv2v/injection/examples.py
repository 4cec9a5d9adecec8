"""Published injections as `Taps`: what one of your own may look like.

    keys = [site for site in editor.sites if site.startswith("up.3") and site.endswith(".self")]
    editor.edit(source, frame, prompt, taps=SourceValues(keys, until=0.2))

Each is a whole injection by itself (`injection=anyv2v.Injection.none()`) or adds to the paper's.
`until` is a fraction of the steps, as in `Injection`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v import checks
from anyv2v.injection.taps import Taps


class SourceValues(Taps):
    """Values of the source in self-attentions, as RF-Solver-Edit has them (arXiv 2411.04746)."""

    def __init__(self, sites: Iterable[str], until: float = 0.2):
        self.sites, self.until = checks.names("sites", sites), checks.fraction("until", until)

    def active(self, step, steps):
        return step < int(steps * self.until)

    def qkv(self, site, q, k, v):
        return q, k, self.source(v)


class SourceQueries(Taps):
    """Queries of the source alone, which carry its motion, and some identity (arXiv 2412.07750)."""

    def __init__(self, sites: Iterable[str], until: float = 0.5):
        self.sites, self.until = checks.names("sites", sites), checks.fraction("until", until)

    def active(self, step, steps):
        return step < int(steps * self.until)

    def qk(self, site, q, k):
        return self.source(q), k


class OutsideOfMask(Taps):
    """The paper's features of the source, but not on tokens that are edited: FREE-Edit's idea.

    arXiv 2603.01164, whose mask is where the first frames differ, and follows the video; here it
    (h, w) stays where it is. For residual features and self-attentions. At its sites it decides in
    place of an `Injection`.
    """

    def __init__(self, sites: Iterable[str], mask: np.ndarray | Tensor, until: float = 0.5):
        self.sites, self.until = checks.names("sites", sites), checks.fraction("until", until)
        self.mask = torch.as_tensor(mask) != 0

    def active(self, step, steps):
        return step < int(steps * self.until)

    def feature(self, site, feature):
        *q_and_k, last = feature.own.compute()
        if q_and_k:
            return *map(self.outside, q_and_k), last
        return (self.outside(last.flatten(1, 2)[..., None]).reshape(last.shape),)

    def outside(self, x: Tensor) -> Tensor:
        """x (..., tokens, heads, d), of the source where the mask is off."""
        edited = on_tokens(self.mask, x.shape[-3]).to(x.device)[:, None, None]
        return torch.where(edited, x, self.source(x))


def on_tokens(mask: Tensor, tokens: int) -> Tensor:
    """mask (h, w) bool -> (tokens,) bool: the tokens of a frame, row by row, that hold any of it.

    A token is as many pixels wide as high, a power of two. ValueError: no grid has that many.
    """
    grid = mask[None].float()
    while grid.numel() > tokens:
        # odd sizes are rounded up, as in the network
        grid = F.max_pool2d(grid, 2, ceil_mode=True)
    if grid.numel() != tokens:
        height, width = mask.shape
        raise ValueError(f"a mask of {height}x{width} has no grid of {tokens} tokens")
    return grid.flatten() > 0
