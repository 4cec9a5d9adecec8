"""Published injections as `Taps`, as models for one of your own.

    keys = [site for site in editor.sites if site.startswith("up.3") and site.endswith(".self")]
    editor.edit(source, frame, prompt, taps=SourceValues(keys, until=0.2))

Such taps are called after the paper's own injection, which stays on. To replace it, pass
`injection=anyv2v.Injection.none()` too. `until` is a fraction of the steps, as in `Injection`.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    """Uses the source's values in self-attentions, as RF-Solver-Edit does (arXiv 2411.04746)."""

    def __init__(self, sites: Iterable[str], until: float = 0.2):
        super().__init__(sites, until)

    def qkv(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Replaces v by the source's."""
        return q, k, self.source(v)


class SourceQueries(_FirstSteps):
    """Uses the source's queries alone; they carry motion and some identity (arXiv 2412.07750)."""

    def __init__(self, sites: Iterable[str], until: float = 0.5):
        super().__init__(sites, until)

    def qk(self, site: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces q by the source's."""
        return self.source(q), k


class OutsideOfMask(_FirstSteps):
    """Injects the paper's features outside of a mask only, as FREE-Edit does (arXiv 2603.01164).

    FREE-Edit finds the mask where the first frames differ and moves it with the video. Here `mask`
    (h, w) is nonzero where the video is edited, and stays in place. It works for residual features
    and self-attentions. At its sites it overrides an `Injection`.
    """

    def __init__(self, sites: Iterable[str], mask: np.ndarray | Tensor, until: float = 0.5):
        super().__init__(sites, until)
        self.mask = torch.as_tensor(mask) != 0

    def feature(self, site: str, feature: Feature) -> tuple[Tensor, ...]:
        """The source's h, or q and k, outside of the mask; each branch's own within it."""
        # unmodified: an `Injection` at the same site has already put the source's everywhere
        *q_and_k, last = feature.unmodified.compute()
        if q_and_k:
            return *map(self.outside, q_and_k), last
        # h (g b f, h, w, c) as tokens of one head
        return (self.outside(last.flatten(1, 2)[..., None]).reshape(last.shape),)

    def outside(self, x: Tensor) -> Tensor:
        """Replaces x (..., tokens, heads, d) by the source's where the mask is zero."""
        edited = token_mask(self.mask, x.shape[-3]).to(x.device)[:, None, None]
        return torch.where(edited, x, self.source(x))


def token_mask(mask: Tensor, tokens: int) -> Tensor:
    """The tokens of a frame, row by row, that hold any pixel of a mask.

    Takes (h, w) bool and returns (tokens,) bool. A token is a square of pixels, its side a power of
    two. ValueError if no such grid has that many tokens.
    """
    grid = mask[None].float()
    while grid.numel() > tokens:
        # odd sizes are rounded up, as in the network
        grid = F.max_pool2d(grid, 2, ceil_mode=True)
    if grid.numel() != tokens:
        height, width = mask.shape
        raise ValueError(f"a mask of {height}x{width} has no grid of {tokens} tokens")
    return grid.flatten() > 0
