"""Verification of a weights folder against its manifest, and a report of what it holds."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anyv2v.errors import InputError
from anyv2v.runtime.memory import size_text
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.manifest import CLIP, MANIFEST, ORIGIN, Shapes, difference, file_sha256
from anyv2v.weights.tensors import (
    NAMES,
    Entry,
    largest,
    open_file,
    read_bytes,
    read_header,
    read_rows,
    rows_buffer,
)


@dataclass(frozen=True)
class Component:
    """Figures about one weight file of a verified folder."""

    file: str
    """Name of the file, such as "unet.safetensors"."""
    tensors: int
    """Number of tensors."""
    parameters: int
    """Number of values in all tensors."""
    bytes: int
    """Size of the file, in bytes."""
    dtypes: tuple[str, ...]
    """The dtypes of its tensors under their names in safetensors files, such as "F16", sorted."""

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{'+'.join(self.dtypes)}, {size_text(self.bytes)}"
        )


@dataclass(frozen=True)
class Report:
    """What a folder holds that was verified without an error; str() gives the text to print."""

    checkpoint: Checkpoint
    """The verified folder."""
    components: tuple[Component, ...]
    """Figures about each of the folder's weight files."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.checkpoint.folder}: {_description(self.checkpoint.config)}",
                *map(str, self.components),
                f"together {sum(c.parameters for c in self.components):,} parameters, "
                f"{size_text(sum(c.bytes for c in self.components))}; names, shapes, dtypes and "
                "sha256 are those of the manifest and fit the network, every value is finite",
                f"fingerprint {self.checkpoint.fingerprint}",
            ]
        )


def _description(config: dict) -> str:
    """What a folder with this config is for, in one line."""
    if config.get("model") == CLIP:
        return f"CLIP, origin {config.get(ORIGIN)}, which scores clips"
    if "model" in config:
        channels = f" with {config['unet']['channels_in']} channels in" if "unet" in config else ""
        return f"{config['model']}{channels}, which edits pictures"
    (width, height), defaults = config["defaults"]["size"], config["defaults"]
    return (
        f"{config['backbone']}, {width}x{height}, {defaults['frames']} frames "
        f"at {defaults['fps']} fps unless told otherwise"
    )


def verify(
    folder: str | Path,
    expected: Callable[[dict], Mapping[str, Shapes]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every byte of a weights folder once, compares it with the manifest, and reports on it.

    Takes 4 MB of memory for the weights. expected: function of the folder's config.json that
    returns component (such as "unet") -> name of a tensor -> its shape, with which the weights are
    compared too; None (the default) skips this. progress: called with (bytes read so far, bytes in
    all).

    Raises InputError for the first fault, such as another sha256, another shape or a value that is
    not finite, with its file and, if it concerns one, its tensor.
    """
    checkpoint = Checkpoint.open(folder)
    expected_shapes = {} if expected is None else expected(checkpoint.config)
    total = sum(facts["bytes"] for facts in checkpoint.files.values())
    read = 0
    components = []
    for name, facts in checkpoint.files.items():
        path = checkpoint.folder / name
        if path.suffix == ".safetensors":
            entries = read_header(path)
            _check_names(path, entries, facts.get("tensors", {}), expected_shapes.get(path.stem))
            sha256 = _check_values(path, entries)
            components.append(_count(path, entries))
        else:
            sha256 = file_sha256(path)
        if sha256 != facts["sha256"]:
            raise InputError(f"{path}: sha256 {sha256}, manifest: {facts['sha256']}")
        read += facts["bytes"]
        if progress is not None:
            progress(read, total)
    return Report(checkpoint, tuple(components))


def _check_names(
    path: Path, entries: dict[str, Entry], listed: dict, expected: Shapes | None
) -> None:
    shapes = {name: entry.shape for name, entry in entries.items()}
    try:
        manifest = {name: tuple(shape) for name, (_, shape) in listed.items()}
        dtypes = {name: dtype for name, (dtype, _) in listed.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path.with_name(MANIFEST)}: lists no dtypes and shapes for {path.name}"
        ) from error
    if differs := difference(shapes, manifest, limit=10):
        raise InputError(f"{path}: is not what the manifest lists: {differs}")
    for name, entry in entries.items():
        if NAMES[entry.dtype] != dtypes[name]:
            raise InputError(
                f"{path}: {name} is {NAMES[entry.dtype]}, the manifest says {dtypes[name]}"
            )
    if expected is not None and (differs := difference(shapes, expected, limit=10)):
        raise InputError(f"{path}: does not fit the network: {differs}")


def _check_values(path: Path, entries: dict[str, Entry]) -> str:
    """Checks that all values of a file are finite, and returns its sha256."""
    digest = hashlib.sha256()
    buffer = rows_buffer(entries.values())
    with open_file(path) as file:
        # tensors follow the header without gaps, in the order of the entries
        header = min((entry.start for entry in entries.values()), default=path.stat().st_size)
        digest.update(read_bytes(file, header, path))
        for name, entry in entries.items():
            for _, piece in read_rows(file, entry, buffer):
                if not largest(piece) < math.inf:
                    raise InputError(f"{path}: {name} holds values that are not finite")
                digest.update(buffer[: piece.nbytes].numpy().data)
    return digest.hexdigest()


def _count(path: Path, entries: dict[str, Entry]) -> Component:
    return Component(
        path.name,
        len(entries),
        sum(math.prod(entry.shape) for entry in entries.values()),
        path.stat().st_size,
        tuple(sorted({NAMES[entry.dtype] for entry in entries.values()})),
    )
