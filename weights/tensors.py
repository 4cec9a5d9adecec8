"""Reading and writing of safetensors files by offset.

Files are not mapped into memory: mapped pages count as resident, so a mapped file of 5 GB would
look like 5 GB of memory in use. A file has eight bytes with the length of the header (little
endian), the header in JSON, and the tensors, row-major and without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from anyv2v.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name of a dtype in safetensors files -> dtype."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LONGEST_HEADER = 100_000_000
"""The most bytes that the format allows for a header; 1,511 tensors need 0.2 MB."""
CHUNK = 4 * 2**20
"""About how many bytes `read_rows` reads at once."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name of a tensor -> (dtype, shape)."""


class Entry(NamedTuple):
    """Dtype, shape and place of one tensor in a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the tensor's first byte from the beginning of the file."""
    end: int
    """Offset of the byte after the tensor's last one, from the beginning of the file."""

    def rows(self, rows: slice) -> "Entry":
        """Returns the entry of consecutive rows: a part of the first axis, of a step of 1."""
        first, last, _ = rows.indices(self.shape[0])
        start, row = self.start, _row_bytes(self)
        shape = max(last - first, 0), *self.shape[1:]
        return Entry(self.dtype, shape, start + first * row, start + max(first, last) * row)


def read_header(path: str | Path) -> dict[str, Entry]:
    """Reads the header of a safetensors file: name of a tensor -> its dtype, shape and place.

    The tensors are in the order of their bytes. Raises InputError, which names the file and the
    tensor, if the file cannot be read or violates the format.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise InputError(f"{path}: {size} bytes are no safetensors file, it is cut off")
        (length,) = struct.unpack("<Q", read_bytes(file, 8, path))
        if length > min(LONGEST_HEADER, size - 8):
            raise InputError(
                f"{path}: no safetensors file, or cut off: "
                f"a header of {length} bytes cannot be in a file of {size}"
            )
        header = _parse(read_bytes(file, length, path), path)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise InputError(f"{path}: no safetensors file: __metadata__ is not an object of texts")
    base = 8 + length
    entries = {name: _entry(path, name, value, base) for name, value in header.items()}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_tiling(path, entries, base, size)
    return entries


def read_tensor(file: FileIO, entry: Entry) -> Tensor:
    """Reads one tensor of a file that `open_file` opened into new CPU memory.

    Raises InputError if the file ends before the tensor does.
    """
    tensor = torch.empty(entry.end - entry.start, dtype=torch.uint8, device="cpu")
    file.seek(entry.start)
    _fill(file, tensor.numpy().data)
    return tensor.view(entry.dtype).view(entry.shape)


def rows_buffer(entries: Iterable[Entry]) -> Tensor:
    """Allocates a CPU buffer (uint8) for `read_rows`, large enough for any one of the entries."""
    sizes = (_rows_at_once(entry) * _row_bytes(entry) for entry in entries)
    return torch.empty(max(sizes, default=0), dtype=torch.uint8, device="cpu")


def read_rows(file: FileIO, entry: Entry, buffer: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Reads a tensor in pieces of about 4 MB, each some of its rows; yields (rows, piece).

    rows: a slice of the tensor's first axis; a scalar counts as one row, and a tensor without
    values has no piece. piece: those rows, as a view of `buffer` (from `rows_buffer`), which the
    next piece overwrites. Raises InputError if the file ends before the tensor does.
    """
    rows = entry.shape[0] if entry.shape else 1
    row, step = _row_bytes(entry), _rows_at_once(entry)
    if entry.start == entry.end:
        return
    file.seek(entry.start)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        piece = buffer[: count * row]
        _fill(file, piece.numpy().data)
        yield slice(first, first + count), piece.view(entry.dtype).view(count, *entry.shape[1:])


def _row_bytes(entry: Entry) -> int:
    return math.prod(entry.shape[1:]) * entry.dtype.itemsize


def _rows_at_once(entry: Entry) -> int:
    rows = entry.shape[0] if entry.shape else 1
    return min(rows, max(1, CHUNK // max(1, _row_bytes(entry))))


def write(path: str | Path, layout: Layout, read: Callable[[str], Tensor]) -> str:
    """Writes a safetensors file one tensor at a time; returns the sha256 of the file, in hex.

    layout: name of each tensor that the file will have -> (dtype, shape). read: function of a name
    that returns the tensor, on the CPU; it is called once per tensor, in the order of the file.
    Tensors are ordered by the size of their dtype, largest first, so that each is aligned, then by
    name, so that equal tensors make equal files.

    Raises FileExistsError if the file exists, and ValueError if a tensor is not as in the layout.
    """
    order = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape = layout[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "xb", buffering=0) as file:

        def put(data) -> None:
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

        put(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = read(name)
            if (tensor.dtype, tuple(tensor.shape)) != (layout[name][0], tuple(layout[name][1])):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not as laid out")
            put(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def largest(tensor: Tensor) -> float:
    """Returns the largest absolute value of a tensor as a float, without copying the tensor.

    It is NaN if any value is NaN, and 0 if the tensor is empty.
    """
    if tensor.numel() == 0:
        return 0.0
    low, high = (value.item() for value in torch.aminmax(tensor))
    return math.nan if math.isnan(low) else max(-low, high)


def overflows(value: float, dtype: torch.dtype) -> bool:
    """Whether a finite value becomes infinite when it is converted to dtype."""
    return bool(torch.tensor(value, dtype=torch.float64, device="cpu").to(dtype).isinf())


def open_file(path: str | Path) -> FileIO:
    """Opens a file for unbuffered reading by offset; raises InputError if it cannot be opened."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_bytes(file: FileIO, count: int, path: str | Path) -> bytes:
    """Reads the next `count` bytes of a file that `open_file` opened.

    Raises InputError if fewer are left. path is not used.
    """
    data = bytearray(count)
    _fill(file, memoryview(data))
    return bytes(data)


def _fill(file: FileIO, view: memoryview) -> None:
    # a loop, because the system reads at most 2 GB per call
    while view:
        count = file.readinto(view)
        if not count:
            raise InputError(f"{file.name}: cut off, {len(view)} bytes are missing")
        view = view[count:]


def _parse(text: bytes, path) -> dict:
    def unique(pairs):
        seen = {}
        for name, value in pairs:
            if name in seen:
                raise InputError(f"{path}: {name} is in the header twice")
            seen[name] = value
        return seen

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: no safetensors file: its header is not a JSON object")
    return header


def _entry(path, name: str, value, base: int) -> Entry:
    def whole(numbers) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{path}: {name} has no dtype, shape and data_offsets, or has more")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: {name} is of dtype {dtype!r}, known are {', '.join(DTYPES)}")
    if not whole(shape):
        raise InputError(f"{path}: {name} has the shape {shape!r}")
    if not whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{path}: {name} has the offsets {offsets!r}")
    start, end = offsets
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if size >= 2**63:
        raise InputError(f"{path}: {name} has the shape {shape!r}")
    if end - start != size:
        raise InputError(
            f"{path}: {name} takes {end - start} bytes, but {dtype} {tuple(shape)} takes {size}"
        )
    if start % DTYPES[dtype].itemsize:
        raise InputError(f"{path}: {name} starts at byte {start}, {dtype} is not aligned there")
    return Entry(DTYPES[dtype], tuple(shape), base + start, base + end)


def _check_tiling(path, entries: dict[str, Entry], base: int, size: int) -> None:
    """Checks that every byte after the header belongs to exactly one tensor."""
    end, last = base, "the header"
    for name, entry in entries.items():
        if entry.start < end:
            raise InputError(f"{path}: {name} overlaps {last}")
        if entry.start > end:
            raise InputError(f"{path}: {entry.start - end} bytes before {name} belong to nothing")
        if entry.end > size:
            raise InputError(
                f"{path}: cut off: {name} ends at byte {entry.end}, the file at {size}"
            )
        end, last = entry.end, name
    if end != size:
        raise InputError(f"{path}: {size - end} bytes after {last} belong to nothing")
