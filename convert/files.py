"""The weight files of one component of a Hugging Face folder, whole or in shards."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.errors import InputError
from anyv2v.weights.manifest import read_json
from anyv2v.weights.tensors import Layout, open_file, read_header, read_tensor

# safetensors is the safer of the two, so it comes first
STEMS = {
    "diffusion_pytorch_model": (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "model": ("model.safetensors", "pytorch_model.bin"),
}


@dataclass(frozen=True)
class Weights:
    """The tensors of one component: layout says what there is, read(name) gives one of them."""

    layout: Layout
    files: dict[str, "SafetensorsFile | BinFile"]

    def read(self, name: str) -> Tensor:
        return self.files[name].read(name)


def open_weights(folder: Path, stem: str, prefer_half: bool) -> Weights:
    """Find and open a component's files. stem: "diffusion_pytorch_model" or "model".

    Full precision is taken before files named fp16, unless prefer_half.
    """
    variants = ("fp16", "") if prefer_half else ("", "fp16")
    for variant in variants:
        for name in STEMS[stem]:
            if (path := folder / _single(name, variant)).is_file():
                return _gather([path])
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
    weights = _gather(paths)
    for name, file in shards.items():
        if name not in weights.files or weights.files[name].path.name != file:
            raise InputError(f"{index}: {name} is not in {file}")
    return weights


def _gather(paths: list[Path]) -> Weights:
    layout, files = {}, {}
    for path in paths:
        file = SafetensorsFile(path) if path.suffix == ".safetensors" else BinFile(path)
        for name, facts in file.layout.items():
            if name in files:
                raise InputError(f"{name} is in {files[name].path} and in {path}")
            layout[name], files[name] = facts, file
    return Weights(layout, files)


class SafetensorsFile:
    def __init__(self, path: Path):
        self.path = path
        self._entries = read_header(path)
        self.layout: Layout = {n: (e.dtype, e.shape) for n, e in self._entries.items()}

    def read(self, name: str) -> Tensor:
        with open_file(self.path) as file:
            return read_tensor(file, self._entries[name])


class BinFile:
    """A file of torch.save, unpickled with nothing but tensors allowed."""

    # pages of a mapped file count as resident until it is let go, so it is opened anew now and then
    LET_GO_AFTER = 128 * 2**20

    def __init__(self, path: Path):
        self.path = path
        self.layout: Layout = {n: (t.dtype, tuple(t.shape)) for n, t in self._open().items()}
        self._state: dict[str, Tensor] | None = None
        self._touched = 0

    def read(self, name: str) -> Tensor:
        if self._state is None or self._touched > self.LET_GO_AFTER:
            # the old mapping goes before the new one comes
            self._state = None
            self._state, self._touched = self._open(), 0
        self._touched += self._state[name].nbytes
        return self._state[name].detach().clone(memory_format=torch.contiguous_format)

    def _open(self) -> dict[str, Tensor]:
        open_file(self.path).close()
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"{self.path}: cannot be read as tensors alone (torch.load, weights_only, the zip "
                f"format that torch writes since 1.6): {reason}"
            ) from error
        if not isinstance(state, dict) or not all(
            isinstance(n, str) and isinstance(t, Tensor) and t.layout == torch.strided
            for n, t in state.items()
        ):
            raise InputError(f"{self.path}: is not a dict of names and tensors")
        return state
