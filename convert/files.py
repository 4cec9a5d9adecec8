"""Finding and opening the weight files of one network, in safetensors or torch.save format."""

import math
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
    "open_clip_model": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
"""Stem that diffusers, transformers or OpenCLIP gives to weight files -> file names, in order of
preference: safetensors comes first because it is the safer format."""


class TensorFile(Protocol):
    """An open file of named tensors, which are read one at a time."""

    @property
    def path(self) -> Path:
        """The path of the file."""
        ...

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Reads the tensor `name` into CPU memory; `rows` selects a part of its first axis."""
        ...


@dataclass(frozen=True)
class Weights:
    """The tensors of one network, stored in one file or in several."""

    origin: Path
    """The only file, or the index of several files; error messages name it."""
    layout: Layout
    """Name of a tensor -> (dtype, shape)."""
    files: dict[str, TensorFile]
    """Name of a tensor -> the open file that holds it."""

    def read(self, name: str) -> Tensor:
        """Reads the tensor `name` into CPU memory."""
        return self.files[name].read(name)

    def select(self, is_needed: Callable[[str], bool]) -> "Weights":
        """Returns these weights without the tensors for whose names `is_needed` returns False."""
        layout = {name: entry for name, entry in self.layout.items() if is_needed(name)}
        return Weights(self.origin, layout, self.files)


def open_weights(folder: Path, stem: str, prefer_half: bool) -> Weights:
    """Opens the weight files of one network in `folder`: one file, or shards with an index.

    stem: a key of `STEMS`. prefer_half: whether files named fp16 (half precision) are preferred to
    the others; if False, they are opened only if there are no others. Raises InputError if the
    folder has no weights of this stem, or if they cannot be read.
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
    entry: str = "",
) -> Weights:
    """Opens files that together hold the tensors of one network.

    origin: the file or index that error messages name. training_keys, ignored_globals, groups and
    entry apply to files written by torch.save; see `BinFile`. Raises InputError if a file cannot be
    read, or if two files hold a tensor of the same name.
    """
    layout, files = {}, {}
    for path in paths:
        _check_binary(path)
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
        else:
            file = BinFile(path, training_keys, ignored_globals, groups, entry)
        for name, form in file.layout.items():
            if name in files:
                raise InputError(f"{name} is in {files[name].path} and in {path}")
            layout[name], files[name] = form, file
    return Weights(origin, layout, files)


def split_fused(weights: Weights, fused: tuple[str, ...], parts: Sequence[str]) -> Weights:
    """Splits tensors that stack several matrices, such as query, key and value, by rows.

    fused: endings of the names of such tensors. parts: names of the equal parts, in order; part "q"
    of the tensor `name` is then read as "name[q]". A tensor whose first axis is not divisible by
    the number of parts stays whole.
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
    """Consecutive rows (along the first axis) of one tensor of a file, presented as a file."""

    file: TensorFile
    """The file that holds the tensor."""
    name: str
    """Name of the tensor in the file."""
    first: int
    """Index of the first of the rows."""
    count: int
    """Number of rows."""

    @property
    def path(self) -> Path:
        """The path of the file that holds the whole tensor."""
        return self.file.path

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Reads the rows into CPU memory, or a part of them: `rows` counts from the first of them.

        `name` is ignored, because there is only one tensor.
        """
        tensor = self.file.read(self.name, slice(self.first, self.first + self.count))
        return tensor if rows is None else tensor[rows]


@dataclass(frozen=True)
class SameTensor:
    """A tensor that a model stores under two names, presented as a file."""

    file: TensorFile
    """The file that holds the tensor."""
    name: str
    """Name of the tensor in that file."""
    other_file: TensorFile
    """The file that holds it a second time, which may be the same file."""
    other_name: str
    """Name of the tensor there."""

    ROWS = 1024
    """Number of rows of the second one that are in memory at once."""

    @property
    def path(self) -> Path:
        """The path of the file that holds the tensor first."""
        return self.file.path

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Reads the tensor, or a part of its first axis, into CPU memory; `name` is ignored.

        Raises InputError if the two are not equal.
        """
        tensor = self.file.read(self.name, rows)
        first = 0 if rows is None or rows.start is None else rows.start
        for at, part in enumerate(tensor.split(self.ROWS)):
            start = first + at * self.ROWS
            again = self.other_file.read(self.other_name, slice(start, start + len(part)))
            if not torch.equal(part, again):
                raise InputError(
                    f"{self.path}: {self.name} and {self.other_name} should be equal, and are not"
                )
        return tensor


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
    """An open safetensors file; only its header is read when it is opened, the tensors by `read`.

    `layout` maps the name of each tensor to its (dtype, shape). Raises InputError if the file
    cannot be read or its header is invalid.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entries = read_header(path)
        self.layout: Layout = {n: (e.dtype, e.shape) for n, e in self._entries.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Reads the tensor `name` into CPU memory; `rows` selects a part of its first axis."""
        entry = self._entries[name]
        with open_file(self.path) as file:
            return read_tensor(file, entry if rows is None else entry.rows(rows))


class Ignored:
    """A stand-in, which does nothing, for a class or function that a pickle names."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class BinFile:
    """A file written by torch.save that holds a dict of tensors; nothing else in it is unpickled.

    `layout` maps the name of each tensor to its (dtype, shape).

    training_keys: a training run may save its weights as the entry "state_dict" of a larger dict;
    these are the other keys that are allowed there, and ignored. ignored_globals: full names of
    classes and functions that the pickle may refer to; each is replaced by `Ignored`. groups: keys
    of a dict of dicts of tensors; if the file holds exactly these keys, its tensors are named
    "group.name". entry: if it is not "", the tensors are those of this entry of a larger dict, all
    other entries of which are ignored.

    Raises InputError if the file cannot be read or holds anything else.
    """

    REMAP_AFTER = 128 * 2**20
    """Number of bytes read after which the file is mapped into memory anew, because pages that were
    read count as resident memory until the mapping is closed."""

    def __init__(
        self,
        path: Path,
        training_keys: tuple[str, ...] = (),
        ignored_globals: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        entry: str = "",
    ):
        self.path, self._training_keys, self._groups = path, training_keys, groups
        self._entry = entry
        self._safe_globals: list[Callable | tuple[Callable, str]] = [
            (Ignored, name) for name in ignored_globals
        ]
        open_file(path).close()
        check_pickle(path, ignored_globals)
        self.layout: Layout = {n: (t.dtype, tuple(t.shape)) for n, t in self._open().items()}
        self._state: dict[str, Tensor] | None = None
        self._bytes_read = 0

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Copies the tensor `name` to CPU memory; `rows` selects a part of its first axis.

        Raises InputError if its data cannot be read.
        """
        dtype, shape = self.layout[name]
        try:
            if not shape:
                return self._mapped(dtype.itemsize)[name].detach().clone()
            first, last, _ = (rows or slice(None)).indices(shape[0])
            tensor = torch.empty((max(last - first, 0), *shape[1:]), dtype=dtype)
            row = math.prod(shape[1:]) * dtype.itemsize
            # a large tensor in pieces, so that it is not in memory twice
            step = max(1, self.REMAP_AFTER // max(1, row))
            for start in range(first, last, step):
                end = min(start + step, last)
                piece = self._mapped((end - start) * row)[name].detach()[start:end]
                tensor[start - first : end - first] = piece
                del piece
            return tensor
        except RuntimeError as error:
            raise InputError(f"{self.path}: {name} cannot be read: {_reason(error)}") from error

    def _mapped(self, size: int) -> dict[str, Tensor]:
        """The file's tensors, of which so many bytes are going to be read."""
        if self._state is None or self._bytes_read > self.REMAP_AFTER:
            # close the old mapping before the new one is opened
            self._state = None
            self._state, self._bytes_read = self._open(), 0
        self._bytes_read += size
        return self._state

    def _open(self) -> dict[str, Tensor]:
        try:
            with torch.serialization.safe_globals(self._safe_globals):
                state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as tensors alone (torch.load, weights_only, the zip "
                f"format that torch writes since 1.6): {_reason(error)}"
            ) from error
        state = self._entry_of(state) if self._entry else self._without_training(state)
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

    def _entry_of(self, state: object) -> object:
        """The entry of a larger dict that holds the tensors."""
        if not isinstance(state, dict) or self._entry not in state:
            raise InputError(f"{self.path}: holds no dict with the entry {self._entry!r}")
        return state[self._entry]

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
