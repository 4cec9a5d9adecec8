"""Every kind of weights folder that there is: its networks' shapes, and looking through one."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn

from anyv2v import loading
from anyv2v.config import blaming
from anyv2v.stable_diffusion import adapters
from anyv2v.stable_diffusion import loading as stable_diffusion
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import IP_ADAPTER, STABLE_DIFFUSION, T2I_ADAPTER
from anyv2v.weights.verify import Report, verify

Builders = Callable[[dict], dict[str, Callable[[], nn.Module]]]

BUILDERS: dict[str, Builders] = {
    STABLE_DIFFUSION: stable_diffusion.builders,
    IP_ADAPTER: adapters.ip_adapter_builders,
    T2I_ADAPTER: adapters.t2i_adapter_builders,
}
"""What a config calls a model that is no backbone -> what makes its networks."""


def expected_shapes(config: dict) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component -> parameter -> shape, for any folder's config."""
    builders = _builders(config)
    if builders is None:
        return loading.expected_shapes(config)
    return loading.shapes_of(builders(config))


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Reads a whole folder and says what it is; InputError names the first thing that is wrong."""
    folder = loading.folder_of(weights)
    if _builders(Checkpoint.open(folder).config) is None:
        return loading.inspect(weights, progress)

    def shapes(config: dict) -> dict[str, dict[str, tuple[int, ...]]]:
        with blaming(folder):
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def _builders(config: dict) -> Builders | None:
    model = config.get("model")
    return BUILDERS.get(model) if isinstance(model, str) else None
