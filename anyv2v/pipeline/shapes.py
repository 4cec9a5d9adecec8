"""The shapes of a source's features, found without computing them."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from anyv2v.backbones.base import Backbone
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import FeatureCache, Kept
from anyv2v.pipeline.denoise import recorded

KNOWN = 16
"""Kinds of recording whose shapes are remembered."""


class FeatureShapes:
    """What a record of a clip would keep, as tensors without data."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._known: dict[Hashable, Kept] = {}

    def of(self, frames: int, size: tuple[int, int], sites: frozenset[str], compact: bool) -> Kept:
        """Site -> features of a clip of so many frames of `size` (width, height)."""
        if not sites:
            return {}
        key = frames, size, sites, compact
        if (known := self._known.get(key)) is not None:
            return known
        meta = torch.device("meta")
        shape = self._backbone.codec.shape(frames, size[1], size[0])
        blank = self._backbone.blank(meta)
        conditions = blank.blank_conditions(*shape[1:])
        latents = torch.empty((1, *shape), dtype=self._backbone.dtype, device=meta)
        level = self._backbone.schedule.levels(1)[0]
        kept = recorded(blank.predict, latents, level.t, conditions, sites, compact)
        # a second for the host, so the last few are known from then on; another thread may find
        # the same, and drop the same
        self._known[key] = kept
        for old in list(self._known)[:-KNOWN]:
            self._known.pop(old, None)
        return kept

    def check(self, cache: FeatureCache, frames: int, size: tuple[int, int]) -> None:
        """InputError unless what is cached are features of such a clip."""
        forms = [self.of(frames, size, cache.sites, compact) for compact in (True, False)]
        for index, at in cache.kept.items():
            for site, parts in at.items():
                found = [tuple(x.shape) for x in parts]
                right = [[tuple(x.shape) for x in form[site]] for form in forms]
                if found not in right:
                    raise InputError(
                        f"features of step {index}, {site}, are of shapes {found}; "
                        f"this clip's are {right[0]}, or {right[1]} if they are not compact"
                    )
