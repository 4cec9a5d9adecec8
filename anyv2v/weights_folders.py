"""Shapes and verification of any weights folder: of a video backbone, a frame editor, or a CLIP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from anyv2v import loading
from anyv2v.clip import model as clip
from anyv2v.config import config_errors
from anyv2v.convert import cache
from anyv2v.runtime.meta import shapes_of
from anyv2v.stable_diffusion import adapters
from anyv2v.stable_diffusion import loading as stable_diffusion
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import CLIP, IP_ADAPTER, STABLE_DIFFUSION, T2I_ADAPTER, Shapes
from anyv2v.weights.packaged import PACKAGED
from anyv2v.weights.verify import Report, verify

Builders = Callable[[dict], dict[str, Callable[[], nn.Module]]]
"""(content of config.json) -> component -> a function that builds its network."""

BUILDERS: dict[str, Builders] = {
    STABLE_DIFFUSION: stable_diffusion.builders,
    IP_ADAPTER: adapters.ip_adapter_builders,
    T2I_ADAPTER: adapters.t2i_adapter_builders,
    CLIP: clip.builders,
}
"""The "model" in the config.json of a frame editor, its adapters or a CLIP -> the function that
names its networks and how they are built."""


def expected_shapes(config: dict) -> dict[str, Shapes]:
    """Returns component -> name of a parameter or buffer -> its shape, for any folder's config.

    config: the content of config.json. Components are the networks of the folder, by name. Builds
    them on the meta device, without memory for weights. Raises InputError for a wrong config.
    """
    builders = _builders(config)
    if builders is None:
        return loading.expected_shapes(config)
    return shapes_of(builders(config))


def folder_of(weights: str | os.PathLike) -> Path:
    """Returns the path of any weights folder, as `loading.folder_of` does for those of videos."""
    folder = cache.located(weights, expected_shapes)
    return PACKAGED.get(os.fspath(weights), folder)


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Reads a whole weights folder, verifies it, and returns a report of what it holds.

    weights: a folder, of a video backbone, a frame editor or a CLIP, or what else `folder_of`
    takes. progress: called with (bytes read so far, bytes in all). Raises InputError, which names
    the first error that is found.
    """
    folder = folder_of(weights)
    if _builders(Checkpoint.open(folder).config) is None:
        return loading.inspect(folder, progress)

    def shapes(config: dict) -> dict[str, Shapes]:
        with config_errors(folder):
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def _builders(config: dict) -> Builders | None:
    model = config.get("model")
    return BUILDERS.get(model) if isinstance(model, str) else None
