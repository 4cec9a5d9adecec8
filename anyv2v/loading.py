"""From a weights folder to an editor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.backbones.base import Backbone, Defaults
from anyv2v.backbones.defaults import original, read_defaults
from anyv2v.backbones.registry import BACKBONES
from anyv2v.config import blaming
from anyv2v.editor import Editor
from anyv2v.errors import InputError
from anyv2v.injection.fractions import Injection
from anyv2v.pipeline.cuda_graphs import wanted
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.runtime.offload import OffloadMode, check_offload
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.demo import FOLDER as DEMO_FOLDER
from anyv2v.weights.manifest import components
from anyv2v.weights.verify import Report, verify

DEMO = "demo"
"""The name under which the weights that come with the package are loaded."""


def load(
    weights: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    graphs: bool | None = None,
    offload: OffloadMode = "auto",
) -> Editor:
    """An editor of the weights in a folder that `anyv2v convert` wrote, or of "demo".

    `device` is cuda if there is one, else cpu; `dtype` float16 on cuda, float32 elsewhere, unless
    given. `graphs`: whether steps are captured in CUDA graphs; on cuda they are unless it is False,
    and True raises where they cannot be. `offload`: whether what makes conditions, and the
    autoencoder's encoder, wait on the host while they are not needed: "auto", from the first job on
    for which the GPU's memory is short; on a CPU never. InputError names what is wrong with a
    folder.
    """
    device = choose_device(device)
    dtype, graphs = choose_dtype(dtype, device), wanted(graphs, device)
    offload = check_offload(offload)
    return _assemble(Checkpoint.open(folder_of(weights)), device, dtype, graphs, offload)


def _assemble(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    graphs: bool | None,
    offload: OffloadMode,
) -> Editor:
    config = checkpoint.config
    with blaming(checkpoint.folder):
        backbone, unbuilt = _backbone(config), builders(config)
        stated = read_defaults(config, backbone.own)

    def build(name: str) -> nn.Module:
        with blaming(checkpoint.folder):
            return unbuilt[name]()

    networks: dict[str, nn.Module] = {}
    reload: dict[nn.Module, Callable[[], Iterable[Tensor]]] = {}
    for name in unbuilt:
        how = name, partial(build, name), device, dtype
        if name in backbone.apart:
            networks[name], read = checkpoint.load_later(*how)
            reload[networks[name]] = read
        else:
            networks[name] = checkpoint.load(*how)
    with blaming(checkpoint.folder):
        made = backbone.assemble(config, networks, checkpoint.folder, stated)
        for group, sites in made.groups.items():
            if unknown := sites.difference(made.sites):
                raise InputError(f"injection {group} names no site {sorted(unknown)[0]}")
        Injection(**config["defaults"].get("injection", {})).groups(made.groups)
        made.schedule.levels(stated.steps)
    return Editor(made, checkpoint.fingerprint, graphs, offload, reload)


def folder_of(weights: str | os.PathLike) -> Path:
    """Where the weights are: "demo" is the folder that came with the package."""
    folder = checks.path("weights", weights)
    return DEMO_FOLDER if os.fspath(weights) == DEMO else folder


class Peek(NamedTuple):
    """What a folder's config alone says."""

    defaults: Defaults
    """The weights' own."""
    original: Defaults
    """The original's settings, on clips of that size."""
    multiple: int
    """What both sides of a frame, in pixels, are multiples of."""


def peek(weights: str | os.PathLike) -> Peek:
    """What can be known of a folder before its networks are loaded."""
    folder = folder_of(weights)
    config = Checkpoint.open(folder).config
    with blaming(folder):
        backbone = _backbone(config)
        defaults = read_defaults(config, backbone.own)
        return Peek(defaults, original(defaults, backbone.own), backbone.multiple(config))


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Reads a whole folder and says what it is; InputError names the first thing that is wrong."""
    folder = folder_of(weights)

    def shapes(config: dict) -> dict[str, dict[str, tuple[int, ...]]]:
        with blaming(folder):
            read_defaults(config, _backbone(config).own)
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Component -> what makes its network, still without weights."""
    networks = _backbone(config).networks(config)
    if {*networks} != {*components(config)}:
        raise InputError(
            f"components: {', '.join(components(config))} are not those of {config['backbone']}: "
            f"{', '.join(networks)}"
        )
    return networks


def expected_shapes(config: dict) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component -> parameter -> shape, for a folder's config."""
    return shapes_of(builders(config))


def shapes_of(
    builders: dict[str, Callable[[], nn.Module]],
) -> dict[str, dict[str, tuple[int, ...]]]:
    networks = {}
    with torch.device("meta"):
        for name, build in builders.items():
            try:
                networks[name] = build()
            except InputError:
                raise
            # torch's layers have their own words for sizes that cannot be
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"{name}: {error}") from error
    return {
        name: {key: tuple(x.shape) for key, x in network.state_dict().items()}
        for name, network in networks.items()
    }


def _backbone(config: dict) -> type[Backbone]:
    if "model" in config:
        raise InputError(
            f"holds {config['model']}, which edits pictures (--editor-weights); "
            "weights that make videos are needed"
        )
    name = config.get("backbone")
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} is not one of {', '.join(BACKBONES)}")
    return BACKBONES[name]
