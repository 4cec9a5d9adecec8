"""A folder of converted weights, and the loading of networks from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyv2v.config import config_errors
from anyv2v.errors import InputError
from anyv2v.weights import hub, manifest
from anyv2v.weights.tensors import (
    NAMES,
    Entry,
    largest,
    open_file,
    overflows,
    read_header,
    read_rows,
    rows_buffer,
)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A folder that `anyv2v convert` wrote; use `Checkpoint.open` to open one."""

    folder: Path
    """Path of the folder."""
    config: dict
    """The content of its config.json."""
    fingerprint: str
    """Sha256, in hex, over weights, tokenizer and config, except for defaults that only say how an
    edit is made; see `manifest.fingerprint`."""
    files: dict[str, dict] = field(repr=False)
    """Name of each file that the manifest lists -> its sha256, its length and, for weights, its
    tensors; see `manifest.read_manifest`."""

    @staticmethod
    def open(folder: str | Path) -> "Checkpoint":
        """Opens a folder and checks that its files are there; reads its config, but no weights.

        Raises InputError if `anyv2v convert` did not write the folder, if it has another version of
        the format, or if a file is missing or does not have the length that the manifest gives.
        """
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file, not a folder of weights" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}")
        if snapshots := hub.snapshots(folder):
            converted = (snapshots[0] / manifest.MANIFEST).is_file()
            first, *others = map(str, snapshots)
            raise InputError(
                f"{folder}: {hub.DESCRIPTION}; "
                + (f"give {first}" if converted else f"anyv2v convert {first} NEW_FOLDER, first")
                + (f"; or of {', '.join(others)}" if others else "")
            )
        if (folder / "model_index.json").is_file():
            raise InputError(
                f"{folder}: is a Hugging Face folder; convert it first: "
                f"anyv2v convert {folder} NEW_FOLDER"
            )
        for name in (manifest.CONFIG, manifest.MANIFEST):
            if not (folder / name).is_file():
                raise InputError(
                    f"{folder}: has no {name}, so it is not a folder that `anyv2v convert` wrote"
                )
        config = manifest.read_json(folder / manifest.CONFIG)
        if config.get("format") != manifest.FORMAT:
            raise InputError(
                f"{folder / manifest.CONFIG}: format {config.get('format')!r}, "
                f"this version reads {manifest.FORMAT}"
            )
        with config_errors(folder):
            components = manifest.components(config)
        files = manifest.read_manifest(folder, components)
        return Checkpoint(folder, config, manifest.fingerprint(config, files), files)

    def load(
        self,
        component: str,
        build: Callable[[], M],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> M:
        """Builds a network and loads its weights, in eval mode and without gradients.

        component: name of the weight file without suffix, such as "unet". build: makes the network;
        it is called with meta as the default device. device, dtype: of the loaded weights, but for
        those whose whole names match the network's attribute `float32`, a pattern, if it has one:
        they are float32 even if dtype is shorter. Weights with four axes are stored channels-last.
        Reading takes 4 MB of memory beside the network itself.

        Raises InputError if the names or shapes in the file are not those of the network and of the
        manifest, or if a value is not finite, as stored or in dtype.
        """
        module = _build_on_meta(build, dtype)
        state = self._read(component, module.state_dict(), device)
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def load_later(
        self,
        component: str,
        build: Callable[[], M],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[M, Callable[..., Iterator[Tensor]]]:
        """Builds a network without weights; returns it and a function that reads the weights later.

        Arguments as in `load`. Each parameter and buffer of the network has its shape but takes no
        memory: it is one NaN, expanded, so that a computation without weights does not go
        unnoticed. Each call of the function, for a device or without argument for `device`, reads
        the file, and returns an iterator over the tensors for the network's parameters, then for
        its buffers.

        Raises InputError like `load`, but for values that are not finite only when the function is
        called.
        """
        module = _build_on_meta(build, dtype).eval().requires_grad_(False)
        expected = module.state_dict()
        self._check(self._path(component), read_header(self._path(component)), expected)
        names = [name for name, _ in chain(module.named_parameters(), module.named_buffers())]

        def read(device: str | torch.device = device) -> Iterator[Tensor]:
            state = self._read(component, expected, device)
            return (state[name] for name in names)

        def nan(x: Tensor) -> Tensor:
            return torch.full((), float("nan"), dtype=x.dtype, device=device).expand(x.shape)

        return module._apply(nan), read

    def _path(self, component: str) -> Path:
        path = self.folder / f"{component}.safetensors"
        if path.name not in self.files:
            raise InputError(f"{self.folder / manifest.MANIFEST}: does not name {path.name}")
        return path

    def _read(
        self, component: str, expected: dict[str, Tensor], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Reads a component, whose tensors must have the names and shapes of `expected`.

        They are returned in the dtypes of `expected`.
        """
        path = self._path(component)
        entries = read_header(path)
        self._check(path, entries, expected)
        # allocated once, before the weights: memory taken and freed between them would leave holes
        # in the heap
        buffer = rows_buffer(entries.values())
        state = {}
        with open_file(path) as file:
            for name, entry in entries.items():
                layout = torch.channels_last if len(entry.shape) == 4 else torch.contiguous_format
                dtype = expected[name].dtype
                weight = torch.empty(entry.shape, dtype=dtype, device=device, memory_format=layout)
                for rows, piece in read_rows(file, entry, buffer):
                    _check_values(f"{path}: {name}", piece, dtype)
                    (weight[rows] if entry.shape else weight[None]).copy_(piece)
                state[name] = weight
        return state

    def _check(self, path: Path, entries: dict[str, Entry], expected: dict[str, Tensor]) -> None:
        shapes = {name: entry.shape for name, entry in entries.items()}
        differs = manifest.difference(
            shapes, {name: tuple(t.shape) for name, t in expected.items()}, limit=10
        )
        if differs:
            raise InputError(f"{path}: does not fit the network: {differs}")
        listed = self.files[path.name].get("tensors", {})
        for name, entry in entries.items():
            if listed.get(name) != [NAMES[entry.dtype], list(entry.shape)]:
                raise InputError(
                    f"{path}: {name} is {NAMES[entry.dtype]} {entry.shape}, "
                    f"the manifest says {listed.get(name)}"
                )
            if not entry.dtype.is_floating_point:
                raise InputError(f"{path}: {name} is {NAMES[entry.dtype]}, weights are floats")


def _build_on_meta(build: Callable[[], M], dtype: torch.dtype) -> M:
    """Builds a module on the meta device, in the dtypes that it is loaded in."""
    with torch.device("meta"), _NoInit():
        module = build()
    saved = module.state_dict()
    if unsaved := [n for n, x in module.named_buffers() if x.is_meta and n not in saved]:
        raise TypeError(f"buffers that are not saved cannot be built on meta: {unsaved}")
    kept = getattr(module, "float32", None)
    for name, x in chain(module.named_parameters(), module.named_buffers()):
        stays = kept is not None and kept.fullmatch(name)
        x.data = x.data.to(torch.promote_types(dtype, torch.float32) if stays else dtype)
    return module


class _NoInit(TorchFunctionMode):
    """Skips the random initialization of weights.

    It has no effect on the meta device, but torch would import 900 modules, 150 MB, for normal_.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            function in (Tensor.normal_, Tensor.uniform_)
            or getattr(function, "__module__", "") == "torch.nn.init"
        ):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _check_values(where: str, piece: Tensor, dtype: torch.dtype) -> None:
    bound = largest(piece)
    # written so that NaN fails too
    if not bound < float("inf"):
        raise InputError(f"{where} holds values that are not finite")
    if overflows(bound, dtype):
        raise InputError(f"{where} holds {bound:g}, too large for {dtype}")
