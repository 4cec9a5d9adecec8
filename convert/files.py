"""Finding and opening the weight files of one component, in safetensors or torch.save format."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from anyv2v.convert.pickles import check_pickle
from anyv2v.errors import InputError
from anyv2v.weights.manifest import read_json
from anyv2v.weights.tensors import NAMES, Layout, open_file, read_header, read_tensor

STEMS = {
    "diffusion_pytorch_model": (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "model": ("model.safetensors", "pytorch_model.bin"),
}
"""Stem of a component's files -> file names; safetensors is the safer format, so it comes first."""


class TensorFile(Protocol):
    """An opened file of named tensors, which are read one at a time."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or only `rows` of its first axis."""
        ...


@dataclass(frozen=True)
class Weights:
    """The tensors of one component, in one file or several."""

    origin: Path
    """The file, or the index of the shards, as messages name it."""
    layout: Layout
    files: dict[str, TensorFile]
    """Name of a tensor -> the file that holds it."""

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.files[name].read(name)

    def select(self, is_needed: Callable[[str], bool]) -> "Weights":
        """The same weights without the tensors whose names are not needed."""
        layout = {name: entry for name, entry in self.layout.items() if is_needed(name)}
        return Weights(self.origin, layout, self.files)


def open_weights(folder: Path, stem: str, prefer_half: bool) -> Weights:
    """Find and open a component's files; `stem` is a key of STEMS.

    Files named fp16 are taken only where there is no other, with `prefer_half` before any other.
    Raises InputError where the folder holds no weights of this stem.
    """
    variants = ("fp16", "") if prefer_half else ("", "fp16")
    for variant in variants:
        for name in STEMS[stem]:
            if (path := folder / _with_variant(name, variant)).is_file():
                return open_files([path], path)
            for index in _index_names(name, variant):
                if (folder / index).is_file():
                    return _open_shards(folder / index)
    raise InputError(
        f"{folder}: holds no weights: neither {' nor '.join(STEMS[stem])}, "
        "nor their shards with an index, nor either under its .fp16. name"
    )


def _with_variant(name: str, variant: str) -> str:
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{variant}{dot}{kind}" if variant else name


def _index_names(name: str, variant: str) -> list[str]:
    if not variant:
        return [f"{name}.index.json"]
    # releases of diffusers and transformers have written both spellings
    return [f"{name}.index.{variant}.json", f"{_with_variant(name, variant)}.index.json"]


def _open_shards(index: Path) -> Weights:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index}: has no weight_map")
    for file in shards.values():
        # a name, not a path: an index must not lead out of its folder
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", file):
            raise InputError(f"{index}: names the shard {file!r}")
    paths = [index.parent / file for file in sorted(set(shards.values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise InputError(f"{index.parent}: missing shards: {', '.join(missing)}")
    weights = open_files(paths, index)
    for name, file in shards.items():
        if name not in weights.files or weights.files[name].path.name != file:
            raise InputError(f"{index}: {name} is not in {file}")
    return weights


def open_files(
    paths: Sequence[Path],
    origin: Path,
    training_keys: tuple[str, ...] = (),
    ignored_globals: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
) -> Weights:
    """Open files whose tensors together make one component.

    `origin` is the file or index that messages name; for the last three see BinFile. Raises
    InputError for a file that cannot be read, and for a name that two files hold.
    """
    layout, files = {}, {}
    for path in paths:
        _check_binary(path)
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
        else:
            file = BinFile(path, training_keys, ignored_globals, groups)
        for name, entry in file.layout.items():
            if name in files:
                raise InputError(f"{name} is in {files[name].path} and in {path}")
            layout[name], files[name] = entry, file
    return Weights(origin, layout, files)


def split_fused(weights: Weights, fused: tuple[str, ...], parts: Sequence[str]) -> Weights:
    """Split the tensors whose names end in one of `fused` into equal parts of their rows.

    The part `p` of the tensor `name` is then read as name[p]. A tensor whose rows cannot be divided
    by the number of parts stays whole.
    """
    layout, files = {}, {}
    for name, (dtype, shape) in weights.layout.items():
        if name.endswith(fused) and shape and shape[0] % len(parts) == 0:
            rows = shape[0] // len(parts)
            for i, part in enumerate(parts):
                layout[f"{name}[{part}]"] = dtype, (rows, *shape[1:])
                files[f"{name}[{part}]"] = TensorRows(weights.files[name], name, i * rows, rows)
        else:
            layout[name], files[name] = (dtype, shape), weights.files[name]
    return Weights(weights.origin, layout, files)


@dataclass(frozen=True)
class TensorRows:
    """Consecutive rows of one tensor, offered like a file that holds nothing else."""

    file: TensorFile
    name: str
    first: int
    count: int

    @property
    def path(self) -> Path:
        """The file that holds the whole tensor."""
        return self.file.path

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read the rows; there is but one tensor, so `name` is not looked at."""
        tensor = self.file.read(self.name, slice(self.first, self.first + self.count))
        return tensor if rows is None else tensor[rows]


def _check_binary(path: Path) -> None:
    with open_file(path) as file:
        start = file.read(60) or b""
    if len(start) > 8 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        text = start.decode("ascii").split("\n")[0]
        pointer = text.startswith("version https://git-lfs")
        what = "a Git LFS pointer, the file itself was not downloaded (git lfs pull)"
        raise InputError(
            f"{path}: is text, it begins with {text!r}: "
            f"{what if pointer else 'weights are wanted, in safetensors or by torch.save'}"
        )


class SafetensorsFile:
    """A file in the safetensors format; its header is read at once, its tensors when asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._entries = read_header(path)
        self.layout: Layout = {n: (e.dtype, e.shape) for n, e in self._entries.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor into memory of its own, or only `rows` of its first axis."""
        with open_file(self.path) as file:
            tensor = read_tensor(file, self._entries[name])
        return tensor if rows is None else tensor[rows]


class Ignored:
    """Stand-in for a class or function that a pickle names; it does nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class BinFile:
    """A file written by torch.save, unpickled with nothing but tensors allowed.

    training_keys: a training run may save its weights as the "state_dict" of a larger dict; these
    are the other keys that are accepted there and ignored. ignored_globals: classes and functions
    that the pickle may name besides tensors; `Ignored` is put in their place. groups: keys of a
    file that is a dict of dicts of tensors; a tensor is then called group.name.
    """

    REMAP_AFTER = 128 * 2**20
    """Bytes read after which the file is mapped anew: the pages of a mapping that were read count
    as resident memory until the mapping is closed."""

    def __init__(
        self,
        path: Path,
        training_keys: tuple[str, ...] = (),
        ignored_globals: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
    ):
        self.path, self._training_keys, self._groups = path, training_keys, groups
        self._safe_globals: list[Callable | tuple[Callable, str]] = [
            (Ignored, name) for name in ignored_globals
        ]
        open_file(path).close()
        check_pickle(path, ignored_globals)
        self.layout: Layout = {n: (t.dtype, tuple(t.shape)) for n, t in self._open().items()}
        self._state: dict[str, Tensor] | None = None
        self._bytes_read = 0

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Copy one tensor out of the mapped file, or only `rows` of its first axis."""
        if self._state is None or self._bytes_read > self.REMAP_AFTER:
            # close the old mapping before the new one is opened
            self._state = None
            self._state, self._bytes_read = self._open(), 0
        try:
            tensor = self._state[name].detach()
            tensor = tensor if rows is None else tensor[rows]
            self._bytes_read += tensor.nbytes
            return tensor.clone(memory_format=torch.contiguous_format)
        except RuntimeError as error:
            raise InputError(f"{self.path}: {name} cannot be read: {_reason(error)}") from error

    def _open(self) -> dict[str, Tensor]:
        try:
            with torch.serialization.safe_globals(self._safe_globals):
                state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as tensors alone (torch.load, weights_only, the zip "
                f"format that torch writes since 1.6): {_reason(error)}"
            ) from error
        state = self._without_training(state)
        if isinstance(state, dict) and set(state) == set(self._groups):
            state = _flatten(state)
        if not isinstance(state, dict) or not all(
            isinstance(n, str) and isinstance(t, Tensor) and t.layout == torch.strided
            for n, t in state.items()
        ):
            raise InputError(f"{self.path}: is not a dict of names and tensors")
        for name, tensor in state.items():
            if tensor.dtype not in NAMES:
                known = ", ".join(map(str, NAMES))
                raise InputError(f"{self.path}: {name} is {tensor.dtype}; known are {known}")
        return state

    def _without_training(self, state: object) -> object:
        """The weights alone, where they are the state_dict of a training run's dict."""
        known = self._training_keys
        if not known or not isinstance(state, dict):
            return state
        if not isinstance(state.get("state_dict"), dict):
            return state
        if unknown := [name for name in state if name not in ("state_dict", *known)]:
            raise InputError(
                f"{self.path}: beside state_dict there is {unknown[0]!r}; "
                f"known are {', '.join(known)}"
            )
        return state["state_dict"]


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _flatten(groups: dict) -> dict | None:
    """{group: {name: tensor}} as {group.name: tensor}; None where a value is no dict."""
    if not all(isinstance(inner, dict) for inner in groups.values()):
        return None
    named = [(f"{group}.{name}", x) for group, inner in groups.items() for name, x in inner.items()]
    return dict(named)
