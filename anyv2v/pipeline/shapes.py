"""The shapes of a source's recorded features, found without computing the features."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from anyv2v.backbones.base import Backbone
from anyv2v.errors import InputError
from anyv2v.injection.feature_cache import FeatureCache
from anyv2v.injection.taps import Features
from anyv2v.pipeline.denoise import record_features

KNOWN = 16
"""Number of results of `FeatureShapes.features` that are remembered."""


class FeatureShapes:
    """Finds the shapes of the features that would be recorded of a clip, without computing them."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._known: dict[Hashable, Features] = {}

    def features(
        self, frames: int, size: tuple[int, int], sites: frozenset[str], compact: bool
    ) -> Features:
        """Returns the features of a clip at `sites` (names of layers), as tensors without data.

        frames, size: number of frames of the clip, and their (width, height) in pixels. compact:
        whether the smallest form of each feature is recorded, see `Feature.record`.
        """
        if not sites:
            return {}
        key = frames, size, sites, compact
        if (known := self._known.get(key)) is not None:
            return known
        meta = torch.device("meta")
        shape = self._backbone.codec.shape(frames, size[1], size[0])
        network = self._backbone.meta_copy(meta)
        conditions = network.meta_conditions(*shape[1:])
        latents = torch.empty((1, *shape), dtype=self._backbone.dtype, device=meta)
        level = self._backbone.schedule.levels(1)[0]
        features = record_features(network.predict, latents, level.t, conditions, sites, compact)
        # this takes the host a second, so the last few results are remembered. Another thread may
        # compute and drop the same ones, which does no harm
        self._known[key] = features
        for old in list(self._known)[:-KNOWN]:
            self._known.pop(old, None)
        return features

    def check(self, cache: FeatureCache, frames: int, size: tuple[int, int]) -> None:
        """Raises InputError if features in `cache` have other shapes than those of such a clip.

        frames, size: number of frames of the clip, and their (width, height) in pixels. Features
        may be in the smallest form or not, see `Feature.record`.
        """
        forms = [self.features(frames, size, cache.sites, compact) for compact in (True, False)]
        for index, features in cache.by_step.items():
            for site, parts in features.items():
                shapes = [tuple(x.shape) for x in parts]
                expected = [[tuple(x.shape) for x in form[site]] for form in forms]
                if shapes not in expected:
                    raise InputError(
                        f"features of step {index}, {site}, are of shapes {shapes}; "
                        f"this clip's are {expected[0]}, or {expected[1]} if they are not compact"
                    )
