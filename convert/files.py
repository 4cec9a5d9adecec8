"""Files of weights, safetensors or torch.save, and how those of one component are found."""

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

# safetensors is the safer of the two, so it comes first
STEMS = {
    "diffusion_pytorch_model": (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "model": ("model.safetensors", "pytorch_model.bin"),
}


class File(Protocol):
    """layout says what there is, read(name) gives one of the tensors, or some of its rows."""

    path: Path
    layout: Layout

    def read(self, name: str, rows: slice | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Weights:
    """The tensors of one component. where: their file, or the index of their shards."""

    where: Path
    layout: Layout
    files: dict[str, File]

    def read(self, name: str) -> Tensor:
        return self.files[name].read(name)

    def only(self, needed: Callable[[str], bool]) -> "Weights":
        """Less the tensors that are not needed."""
        layout = {name: facts for name, facts in self.layout.items() if needed(name)}
        return Weights(self.where, layout, self.files)


def open_weights(folder: Path, stem: str, prefer_half: bool) -> Weights:
    """Find and open a component's files. stem: "diffusion_pytorch_model" or "model".

    Full precision is taken before files named fp16, unless prefer_half.
    """
    variants = ("fp16", "") if prefer_half else ("", "fp16")
    for variant in variants:
        for name in STEMS[stem]:
            if (path := folder / _single(name, variant)).is_file():
                return gather([path], path)
            for index in _indices(name, variant):
                if (folder / index).is_file():
                    return _open_shards(folder / index)
    raise InputError(
        f"{folder}: holds no weights: neither {' nor '.join(STEMS[stem])}, "
        "nor their shards with an index, nor either under its .fp16. name"
    )


def _single(name: str, variant: str) -> str:
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{variant}{dot}{kind}" if variant else name


def _indices(name: str, variant: str) -> list[str]:
    if not variant:
        return [f"{name}.index.json"]
    # both spellings have been written by releases of diffusers and transformers
    return [f"{name}.index.{variant}.json", f"{_single(name, variant)}.index.json"]


def _open_shards(index: Path) -> Weights:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index}: has no weight_map")
    for file in shards.values():
        # a name, not a path: an index must not lead out of its folder
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", file):
            raise InputError(f"{index}: names the shard {file!r}")
    paths = [index.parent / file for file in sorted(set(shards.values()))]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise InputError(f"{index.parent}: missing shards: {', '.join(absent)}")
    weights = gather(paths, index)
    for name, file in shards.items():
        if name not in weights.files or weights.files[name].path.name != file:
            raise InputError(f"{index}: {name} is not in {file}")
    return weights


def gather(
    paths: Sequence[Path],
    where: Path,
    beside: tuple[str, ...] = (),
    inert: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
) -> Weights:
    """The tensors of all the files together. beside, inert, groups: see BinFile."""
    layout, files = {}, {}
    for path in paths:
        _check_binary(path)
        is_bin = path.suffix != ".safetensors"
        file = BinFile(path, beside, inert, groups) if is_bin else SafetensorsFile(path)
        for name, facts in file.layout.items():
            if name in files:
                raise InputError(f"{name} is in {files[name].path} and in {path}")
            layout[name], files[name] = facts, file
    return Weights(where, layout, files)


def split(weights: Weights, fused: tuple[str, ...], parts: Sequence[str]) -> Weights:
    """Tensors whose names end in one of `fused` hold `parts` in their rows; read as name[part]."""
    layout, files = {}, {}
    for name, (dtype, shape) in weights.layout.items():
        if name.endswith(fused) and shape and shape[0] % len(parts) == 0:
            rows = shape[0] // len(parts)
            for i, part in enumerate(parts):
                layout[f"{name}[{part}]"] = dtype, (rows, *shape[1:])
                files[f"{name}[{part}]"] = Rows(weights.files[name], name, i * rows, rows)
        else:
            layout[name], files[name] = (dtype, shape), weights.files[name]
    return Weights(weights.where, layout, files)


@dataclass(frozen=True)
class Rows:
    """Some rows of one tensor of a file."""

    file: File
    name: str
    first: int
    count: int

    @property
    def path(self) -> Path:
        return self.file.path

    def read(self, name: str) -> Tensor:
        return self.file.read(self.name, slice(self.first, self.first + self.count))


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
    def __init__(self, path: Path):
        self.path = path
        self._entries = read_header(path)
        self.layout: Layout = {n: (e.dtype, e.shape) for n, e in self._entries.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        with open_file(self.path) as file:
            tensor = read_tensor(file, self._entries[name])
        return tensor if rows is None else tensor[rows]


class Inert:
    """Takes the place of whatever a pickle would call, and does nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class BinFile:
    """A file of torch.save, unpickled with nothing but tensors allowed.

    beside: where training wrote the weights as the state_dict of a larger dict, what else may be
    in that. None of it is looked at, and inert names what of it is not even made. groups: where the
    weights are dicts in a dict, the names of those; a tensor is then called group.name.
    """

    # pages of a mapped file count as resident until it is let go, so it is opened anew now and then
    LET_GO_AFTER = 128 * 2**20

    def __init__(
        self,
        path: Path,
        beside: tuple[str, ...] = (),
        inert: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
    ):
        self.path, self._beside, self._groups = path, beside, groups
        self._inert = [(Inert, name) for name in inert]
        open_file(path).close()
        check_pickle(path, inert)
        self.layout: Layout = {n: (t.dtype, tuple(t.shape)) for n, t in self._open().items()}
        self._state: dict[str, Tensor] | None = None
        self._touched = 0

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        if self._state is None or self._touched > self.LET_GO_AFTER:
            # the old mapping goes before the new one comes
            self._state = None
            self._state, self._touched = self._open(), 0
        try:
            tensor = self._state[name].detach()
            tensor = tensor if rows is None else tensor[rows]
            self._touched += tensor.nbytes
            return tensor.clone(memory_format=torch.contiguous_format)
        except RuntimeError as error:
            raise InputError(f"{self.path}: {name} cannot be read: {_reason(error)}") from error

    def _open(self) -> dict[str, Tensor]:
        try:
            with torch.serialization.safe_globals(self._inert):
                state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as tensors alone (torch.load, weights_only, the zip "
                f"format that torch writes since 1.6): {_reason(error)}"
            ) from error
        if self._beside and isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            if unknown := [name for name in state if name not in ("state_dict", *self._beside)]:
                raise InputError(
                    f"{self.path}: beside state_dict there is {unknown[0]!r}; "
                    f"known are {', '.join(self._beside)}"
                )
            state = state["state_dict"]
        if isinstance(state, dict) and set(state) == set(self._groups):
            state = _flat(state)
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


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _flat(groups: dict) -> dict | None:
    """One dict of {group: {name: tensor}}; None where it is not made like that."""
    if not all(isinstance(inner, dict) for inner in groups.values()):
        return None
    named = [(f"{group}.{name}", x) for group, inner in groups.items() for name, x in inner.items()]
    return dict(named)
