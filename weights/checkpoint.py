"""A folder of converted weights, and how a network gets its weights from there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyv2v.config import blaming
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


@dataclass(frozen=True)
class Checkpoint:
    """One folder that `anyv2v convert` wrote, opened: its config is read, its weights are not.

    fingerprint: sha256 in hex, equal for equal weights, tokenizer and config.
    """

    folder: Path
    config: dict
    fingerprint: str
    files: dict[str, dict] = field(repr=False)

    @staticmethod
    def open(folder: str | Path) -> "Checkpoint":
        """InputError: no such folder, another format, a file missing or of another length."""
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file, not a folder of weights" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}")
        if there := hub.snapshots(folder):
            converted = (there[0] / manifest.MANIFEST).is_file()
            first, *others = map(str, there)
            raise InputError(
                f"{folder}: {hub.WHAT}; "
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
        with blaming(folder):
            components = manifest.components(config)
        files = manifest.read_manifest(folder, components)
        return Checkpoint(folder, config, manifest.fingerprint(config, files), files)

    def load(
        self,
        component: str,
        build: Callable[[], nn.Module],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> nn.Module:
        """The module that build() makes, with the weights of a component, ready to run.

        component: the name of its file, without suffix. Adds the module's own bytes and 4 MB to the
        resident memory: it is built on the meta device and filled piece by piece. Weights of
        convolutions come to lie channels-last. InputError: names or shapes that differ from the
        module's, and tensors with a value that is not finite.
        """
        module = _without_data(build)
        state = self._read(component, module.state_dict(), device, dtype)
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def load_later(
        self,
        component: str,
        build: Callable[[], nn.Module],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[nn.Module, Callable[[], Iterator[Tensor]]]:
        """The same module without its weights, and what reads them from the folder.

        Until they are put there, each tensor has its shape and takes no memory: one number stands
        for all, and it is none, so that nobody computes with it unnoticed. What is read are the
        module's parameters and then its buffers, each time anew. InputError: as of `load`; of
        values that will not do when they are read.
        """
        module = _without_data(build).eval().requires_grad_(False)
        wanted = module.state_dict()
        self._check(self._path(component), read_header(self._path(component)), wanted)
        names = [name for name, _ in chain(module.named_parameters(), module.named_buffers())]

        def read() -> Iterator[Tensor]:
            state = self._read(component, wanted, device, dtype)
            return (state[name] for name in names)

        nothing = torch.full((), float("nan"), dtype=dtype, device=device)
        return module._apply(lambda x: nothing.expand(x.shape)), read

    def _path(self, component: str) -> Path:
        path = self.folder / f"{component}.safetensors"
        if path.name not in self.files:
            raise InputError(f"{self.folder / manifest.MANIFEST}: does not name {path.name}")
        return path

    def _read(
        self,
        component: str,
        wanted: dict[str, Tensor],
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        """The tensors of a component, which must have the names and shapes of `wanted`."""
        path = self._path(component)
        entries = read_header(path)
        self._check(path, entries, wanted)
        # once, before the weights: memory taken and freed between them leaves holes in the heap
        buffer = rows_buffer(entries.values())
        state = {}
        with open_file(path) as file:
            for name, entry in entries.items():
                layout = torch.channels_last if len(entry.shape) == 4 else torch.contiguous_format
                weight = torch.empty(entry.shape, dtype=dtype, device=device, memory_format=layout)
                for rows, piece in read_rows(file, entry, buffer):
                    _check_values(f"{path}: {name}", piece, dtype)
                    (weight[rows] if entry.shape else weight[None]).copy_(piece)
                state[name] = weight
        return state

    def _check(self, path: Path, entries: dict[str, Entry], wanted: dict[str, Tensor]) -> None:
        shapes = {name: entry.shape for name, entry in entries.items()}
        differs = manifest.difference(
            shapes, {name: tuple(t.shape) for name, t in wanted.items()}, limit=10
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


def _without_data(build: Callable[[], nn.Module]) -> nn.Module:
    """The module on the meta device."""
    with torch.device("meta"), _NoDraws():
        module = build()
    saved = module.state_dict()
    if unsaved := [n for n, x in module.named_buffers() if x.is_meta and n not in saved]:
        raise TypeError(f"buffers that are not saved cannot be built on meta: {unsaved}")
    return module


class _NoDraws(TorchFunctionMode):
    """Leaves out the drawing of initial values.

    There is nothing to draw on meta, but for normal_ torch would import 900 modules, 150 MB.
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
    if not bound < float("inf"):
        raise InputError(f"{where} holds values that are not finite")
    if overflows(bound, dtype):
        raise InputError(f"{where} holds {bound:g}, too large for {dtype}")
