"""Shapes and verification of any kind of weights folder, of a backbone or of an image editor."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn

from anyv2v import loading
from anyv2v.config import config_errors
from anyv2v.stable_diffusion import adapters
from anyv2v.stable_diffusion import loading as stable_diffusion
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import IP_ADAPTER, STABLE_DIFFUSION, T2I_ADAPTER, Shapes
from anyv2v.weights.verify import Report, verify

Builders = Callable[[dict], dict[str, Callable[[], nn.Module]]]

BUILDERS: dict[str, Builders] = {
    STABLE_DIFFUSION: stable_diffusion.builders,
    IP_ADAPTER: adapters.ip_adapter_builders,
    T2I_ADAPTER: adapters.t2i_adapter_builders,
}
"""The "model" of a config that is not of a backbone -> the function that names its networks."""


def expected_shapes(config: dict) -> dict[str, Shapes]:
    """Return component -> parameter -> shape for the config of any weights folder."""
    builders = _builders(config)
    if builders is None:
        return loading.expected_shapes(config)
    return loading.shapes_of(builders(config))


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Read a whole folder and report what it holds; InputError names the first error.

    weights: a folder, or "demo". progress: called with the bytes read so far and in all.
    """
    folder = loading.folder_of(weights)
    if _builders(Checkpoint.open(folder).config) is None:
        return loading.inspect(weights, progress)

    def shapes(config: dict) -> dict[str, Shapes]:
        with config_errors(folder):
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def _builders(config: dict) -> Builders | None:
    model = config.get("model")
    return BUILDERS.get(model) if isinstance(model, str) else None
