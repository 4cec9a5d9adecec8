"""Loads a weights folder, which `anyv2v convert` wrote, into an `Editor`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anyv2v.backbones.base import Backbone, Defaults
from anyv2v.backbones.defaults import published_defaults, read_defaults
from anyv2v.backbones.registry import BACKBONES
from anyv2v.config import config_errors
from anyv2v.convert import cache
from anyv2v.convert.repositories import VIDEOS
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection
from anyv2v.pipeline.cuda_graphs import resolve_graphs
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.runtime.meta import shapes_of
from anyv2v.runtime.offload import OffloadMode, check_offload
from anyv2v.runtime.stage import stage
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import CLIP, Shapes, components
from anyv2v.weights.packaged import PACKAGED
from anyv2v.weights.verify import Report, verify

log = logging.getLogger(__name__)


def load(
    weights: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    graphs: bool | None = None,
    offload: OffloadMode = "auto",
) -> Editor:
    """Loads weights into an editor.

    `weights`: a folder that `anyv2v convert` wrote; "demo" or "flow"; or `OWNER/NAME` or
    `OWNER/NAME@REVISION` of a repository of the Hugging Face hub, such as "ali-vilab/i2vgen-xl",
    which is downloaded and converted to a cache on its first use (see
    `anyv2v.convert.cache.located`). Nothing is written, and no network used, for anything else than
    a repository that is not in the cache.
    `device`: None is cuda if there is one, else cpu. `dtype`: None is float16, of Wan bfloat16, on
    cuda, and float32 elsewhere. `graphs`: None captures steps in CUDA graphs where that is
    possible; True requires it, so a step that cannot be captured raises RuntimeError; False
    captures none. `offload`: whether the networks that make conditions and the autoencoder's
    encoder are moved to the host while they are not needed; "auto" does so from the first job on
    for which the GPU's memory is short. On a CPU nothing is moved. Raises InputError, which says
    what is wrong, for an unusable folder or argument.
    """
    device = choose_device(device)
    graphs, offload = resolve_graphs(graphs, device), check_offload(offload)
    checkpoint = Checkpoint.open(folder_of(weights))
    dtype = _dtype(checkpoint, device, dtype)
    with stage(log, device, "load: %s as %s on %s", checkpoint.folder, dtype, device):
        return _assemble(checkpoint, device, dtype, graphs, offload)


def skeleton(
    weights: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Editor:
    """Returns an editor like that of `load`, whose networks have no weights and take no memory.

    It can plan runs and predict their costs, and compute nothing. Raises InputError as `load` does.
    """
    device = choose_device(device)
    checkpoint = Checkpoint.open(folder_of(weights))
    return _assemble(checkpoint, device, _dtype(checkpoint, device, dtype), None, False, empty=True)


def _dtype(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    with config_errors(checkpoint.folder):
        backbone = _backbone(checkpoint.config)
    return choose_dtype(dtype, device, backbone.half_dtype)


def _assemble(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    graphs: bool | None,
    offload: OffloadMode,
    empty: bool = False,
) -> Editor:
    config = checkpoint.config
    with config_errors(checkpoint.folder):
        backbone, constructors = _backbone(config), builders(config)
        defaults = read_defaults(config, backbone.published_settings)

    def build(name: str) -> nn.Module:
        with config_errors(checkpoint.folder):
            return constructors[name]()

    networks: dict[str, nn.Module] = {}
    reload: dict[nn.Module, Callable[..., Iterable[Tensor]]] = {}
    for name in constructors:
        arguments = name, partial(build, name), device, dtype
        if empty:
            networks[name], _ = checkpoint.load_later(*arguments)
        elif name in backbone.loaded_on_demand:
            networks[name], read = checkpoint.load_later(*arguments)
            reload[networks[name]] = read
        else:
            networks[name] = checkpoint.load(*arguments)
    with config_errors(checkpoint.folder):
        assembled = backbone.assemble(config, networks, checkpoint.folder, defaults)
        for group, sites in assembled.groups.items():
            if unknown := sites.difference(assembled.sites):
                raise InputError(f"injection {group} names no site {sorted(unknown)[0]}")
        # both raise InputError if the config's defaults do not fit the backbone
        Injection(**config["defaults"].get("injection", {})).groups(assembled.groups)
        assembled.schedule.levels(defaults.steps)
    return Editor(assembled, checkpoint.fingerprint, graphs, offload, reload)


def folder_of(weights: str | os.PathLike) -> Path:
    """Returns the path of a weights folder for editing videos.

    "demo" and "flow" come with the package; the name of a repository is that of its weights in the
    cache, to which they are downloaded if they are not there, see `load`. Raises InputError
    if `weights` is no valid path; the folder need not exist.
    """
    folder = cache.located(weights, expected_shapes, (VIDEOS,))
    return PACKAGED.get(os.fspath(weights), folder)


class Peek(NamedTuple):
    """What the config of a weights folder says, without its networks."""

    defaults: Defaults
    """The settings that the weights work best with."""
    original: Defaults
    """The settings of the original code, with size, frames and fps of the weights' own."""
    multiple: int
    """The number of pixels of which both sides of a frame must be multiples."""
    fingerprint: str
    """That of the weights, see `Checkpoint.fingerprint`."""
    backbone: str
    """Name of the backbone, a key of `BACKBONES`."""
    frames_per_latent: int
    """See `Backbone.frames_per_latent`."""


def peek(weights: str | os.PathLike) -> Peek:
    """Reads the config of a weights folder, or of "demo" or "flow", without loading its networks.

    Raises InputError if it is no folder that `anyv2v convert` wrote for editing videos.
    """
    folder = folder_of(weights)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    with config_errors(folder):
        backbone = _backbone(config)
        defaults = read_defaults(config, backbone.published_settings)
        published = published_defaults(defaults, backbone.published_settings)
        multiple = backbone.size_multiple(config)
        name = str(config["backbone"])
        facts = checkpoint.fingerprint, name, backbone.frames_per_latent(config)
        return Peek(defaults, published, multiple, *facts)


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Reads the whole weights folder of a video backbone, verifies it, and returns a report.

    weights: a folder, "demo" or "flow". progress: called with (bytes read so far, bytes in all).
    Raises InputError, which names the first error that is found.
    """
    folder = folder_of(weights)

    def shapes(config: dict) -> dict[str, Shapes]:
        with config_errors(folder):
            read_defaults(config, _backbone(config).published_settings)
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Returns component -> a function that builds its network, whose weights are not loaded.

    config: the content of a folder's config.json. Components are the networks of its backbone, by
    name. Raises InputError if the config lists others.
    """
    networks = _backbone(config).networks(config)
    if {*networks} != {*components(config)}:
        raise InputError(
            f"components: {', '.join(components(config))} are not those of {config['backbone']}: "
            f"{', '.join(networks)}"
        )
    return networks


def expected_shapes(config: dict) -> dict[str, Shapes]:
    """Returns component -> name of a parameter or buffer -> its shape, for a backbone's config.

    config: the content of a folder's config.json. Raises InputError if it is wrong.
    """
    return shapes_of(builders(config))


def _backbone(config: dict) -> type[Backbone]:
    if "model" in config:
        use = (
            "scores clips (--clip)"
            if config["model"] == CLIP
            else "edits pictures (--editor-weights)"
        )
        raise InputError(
            f"holds {config['model']}, which {use}; weights that make videos are needed"
        )
    name = config.get("backbone")
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} is not one of {', '.join(BACKBONES)}")
    return BACKBONES[name]
