"""Published methods of injection, written as `Taps`: models for a method of your own.

    sites = [site for site in editor.sites if site.startswith("up.3") and site.endswith(".self")]
    editor.edit(source, frame, prompt, taps=SourceValues(sites, until=0.2))

Taps are called after AnyV2V's own injection, which stays on. To replace it, also pass
`injection=anyv2v.Injection.none()`. To keep its residual features ("conv") and replace its queries
and keys, pass `anyv2v.Injection(spatial=0, temporal=0)`. `until` is the fraction of the steps,
counted from the noisiest, in which the taps are active, as in `Injection`.
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
        """Returns (h,) or (q, k, v), with h, or q and k, of the source outside of the mask.

        Within the mask, and in v, each branch has its own values.
        """
        # unmodified: an `Injection` at the same site has already put the source's everywhere
        *q_and_k, last = feature.unmodified.compute()
        if q_and_k:
            return *map(self.outside, q_and_k), last
        # h (g b f, h, w, c) as tokens of one head
        return (self.outside(last.flatten(1, 2)[..., None]).reshape(last.shape),)

    def outside(self, x: Tensor) -> Tensor:
        """Returns x (..., tokens, heads, d), with the source's values outside of the mask.

        Raises ValueError if no grid of the mask has as many tokens, see `token_mask`.
        """
        edited = token_mask(self.mask, x.shape[-3]).to(x.device)[:, None, None]
        return torch.where(edited, x, self.source(x))


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
