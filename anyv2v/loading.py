"""From a weights folder to an editor."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from anyv2v import checks
from anyv2v.backbones import BACKBONES
from anyv2v.backbones.base import Backbone
from anyv2v.config import blaming, section
from anyv2v.diffusion.schedule import OFFSET, TRAIN_STEPS
from anyv2v.editor import Defaults, Editor
from anyv2v.errors import InputError
from anyv2v.graphs import wanted
from anyv2v.offload import Wanted, checked
from anyv2v.vae.autoencoder import Autoencoder, AutoencoderConfig
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.demo import FOLDER as DEMO_FOLDER
from anyv2v.weights.verify import Report, verify

DEMO = "demo"
"""The name under which the weights that come with the package are loaded."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SCHEDULE = {"train_steps": TRAIN_STEPS, "steps_offset": OFFSET}
"""The one schedule there is; a folder that was trained on another is refused."""


def load(
    weights: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    graphs: bool | None = None,
    offload: Wanted = "auto",
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
    dtype, graphs, offload = choose_dtype(dtype, device), wanted(graphs, device), checked(offload)
    return _assemble(Checkpoint.open(folder_of(weights)), device, dtype, graphs, offload)


def _assemble(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    graphs: bool | None,
    offload: Wanted,
) -> Editor:
    config = checkpoint.config
    with blaming(checkpoint.folder):
        network = _backbone(config)
        if config.get("schedule") != SCHEDULE:
            raise InputError(f"schedule {config.get('schedule')} is not {SCHEDULE}")
        defaults, unbuilt = _defaults(config), builders(config)

    def build(name: str) -> nn.Module:
        with blaming(checkpoint.folder):
            return unbuilt[name]()

    networks = {
        name: checkpoint.load(name, partial(build, name), device, dtype) for name in unbuilt
    }
    with blaming(checkpoint.folder):
        backbone = network.assemble(config, networks, checkpoint.folder)
        for group, sites in backbone.groups.items():
            if unknown := sites.difference(backbone.sites):
                raise InputError(f"injection {group} names no site {sorted(unknown)[0]}")
    return Editor(backbone, networks["vae"], defaults, checkpoint.fingerprint, graphs, offload)


def folder_of(weights: str | os.PathLike) -> Path:
    """Where the weights are: "demo" is the folder that came with the package."""
    folder = checks.path("weights", weights)
    return DEMO_FOLDER if os.fspath(weights) == DEMO else folder


def peek(weights: str | os.PathLike) -> tuple[Defaults, int]:
    """A folder's defaults, and pixels per latent, from its config alone."""
    folder = folder_of(weights)
    config = Checkpoint.open(folder).config
    with blaming(folder):
        _backbone(config)
        return _defaults(config), section(config, "vae", AutoencoderConfig).factor


def inspect(
    weights: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Reads a whole folder and says what it is; InputError names the first thing that is wrong."""
    folder = folder_of(weights)

    def shapes(config: dict) -> dict[str, dict[str, tuple[int, ...]]]:
        with blaming(folder):
            _defaults(config)
            return expected_shapes(config)

    return verify(folder, shapes, progress)


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Component -> what makes its network, still without weights."""
    return {
        **_backbone(config).networks(config),
        "vae": lambda: Autoencoder(section(config, "vae", AutoencoderConfig)),
    }


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


def choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"device: {checks.shown(device)} is neither cpu nor cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {device} is neither cpu nor cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise InputError(f"device: {device} was asked for, but there are {there} here; use cpu")
    return device


def choose_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise InputError(
            f"dtype: {checks.shown(dtype)} is not one of {', '.join(map(str, DTYPES))}"
        )
    return dtype


def _defaults(config: dict) -> Defaults:
    found = section(config, "defaults", Defaults)
    frames, fps = checks.whole("frames", found.frames), checks.whole("fps", found.fps)
    return Defaults(checks.size(found.size), frames, fps)


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
