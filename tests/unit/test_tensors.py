import hashlib
import json
import math
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anyv2v.errors import InputError
from anyv2v.weights import tensors
from anyv2v.weights.tensors import Entry, largest, open_file, overflows, read_header, write


def samples() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "half": torch.randn(3, 5).half(),
        "single": torch.randn(2, 3, 4),
        "scalar": torch.tensor(7.0),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(3).double(),
        "whole": torch.tensor([1, -2, 3]),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "switches": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }


def layout_of(values):
    return {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}


def read_all(path):
    entries = read_header(path)
    with open_file(path) as file:
        return {name: tensors.read_tensor(file, entry) for name, entry in entries.items()}


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    path, values = tmp_path / "a.safetensors", samples()
    sha256 = write(path, layout_of(values), values.__getitem__)
    check_same(load_file(path), values)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    path, values = tmp_path / "a.safetensors", samples()
    save_file(values, path, metadata={"format": "pt"})
    check_same(read_all(path), values)


def test_we_read_what_we_write(tmp_path):
    values = samples()
    write(tmp_path / "a", layout_of(values), values.__getitem__)
    check_same(read_all(tmp_path / "a"), values)


def test_a_strided_tensor_is_written_row_major(tmp_path):
    value = torch.arange(6.0).reshape(2, 3).T
    write(tmp_path / "a", {"x": (torch.float32, (3, 2))}, lambda name: value)
    assert torch.equal(load_file(tmp_path / "a")["x"], value)


STRIDED = {
    "every second": lambda x: x.repeat_interleave(2)[::2],
    "turned": lambda x: x.reshape(2, 3).T,
    "a column": lambda x: x[:, None].expand(-1, 4)[:, 1:2],
    "one for all": lambda x: x[:1].expand(6),
    "a part": lambda x: x.repeat(2).view(2, 6)[:, 1:4],
    "channels last": lambda x: x.repeat(8).view(2, 4, 3, 2).to(memory_format=torch.channels_last),
    "a scalar": lambda x: x[3],
    "nothing": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", tensors.DTYPES.values(), ids=str)
@pytest.mark.parametrize("how", STRIDED)
def test_a_tensor_is_written_however_it_lies(tmp_path, how, dtype):
    value = STRIDED[how](torch.tensor([0, 1, 1, 0, 3, 2]).to(dtype))
    write(tmp_path / "a", {"x": (dtype, tuple(value.shape))}, lambda name: value)
    check_same(load_file(tmp_path / "a"), {"x": value.contiguous()})
    check_same(read_all(tmp_path / "a"), {"x": value.contiguous()})


@pytest.mark.parametrize("length", range(1, 10))
def test_tensors_begin_where_their_numbers_may(tmp_path, length):
    """The header is filled up to eight bytes; before smaller numbers come the larger ones."""
    values = {"b" * length: torch.ones(3), "a": torch.ones(3).half(), "c": torch.ones(1).double()}
    values["d"] = torch.ones(5, dtype=torch.uint8)
    write(tmp_path / "a", layout_of(values), values.__getitem__)
    (text,) = struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])
    assert text % 8 == 0
    entries = read_header(tmp_path / "a")
    assert list(entries) == ["c", "b" * length, "a", "d"]
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in entries.values())


def test_equal_tensors_make_equal_files_in_whatever_order(tmp_path):
    values = samples()
    for name, order in (("a", list(values)), ("b", list(reversed(values)))):
        layout = {key: (values[key].dtype, tuple(values[key].shape)) for key in order}
        write(tmp_path / name, layout, values.__getitem__)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_not_as_laid_out_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"x is torch.float32 \(2, 3\), not as laid out"):
        write(tmp_path / "a", {"x": (torch.float32, (3, 2))}, lambda name: torch.zeros(2, 3))


def test_an_existing_file_is_not_written_over(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", {}, samples().__getitem__)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("shape", [(37, 5, 3), (5,), (), (0, 3), (3, 0), (1, 100)])
def test_pieces_make_the_whole(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(tensors, "CHUNK", 64)
    torch.manual_seed(0)
    value = torch.randn(shape)
    write(tmp_path / "a", {"x": (torch.float32, shape)}, lambda name: value)
    entry = read_header(tmp_path / "a")["x"]
    buffer = tensors.rows_buffer([entry])
    found = torch.full((shape[0] if shape else 1, *shape[1:]), math.nan)
    with open_file(tmp_path / "a") as file:
        for rows, piece in tensors.read_rows(file, entry, buffer):
            assert piece.numel() * 4 <= max(64, 4 * math.prod(shape[1:]))
            found[rows] = piece
    assert torch.equal(found.view(shape), value)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes):
    return {**F32, **changes}


@pytest.mark.parametrize(
    "header, data, message",
    [
        (b"[1, 2]", b"", "not a JSON object"),
        (b"{oops", b"", "header is not JSON"),
        (b"\xff\xfe{}", b"", "header is not JSON"),
        (b"[" * 100_000, b"", "header is not JSON"),
        (b'{"x": 1, "x": 2}', b"", "x is in the header twice"),
        ({"x": 1}, b"", "x has no dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [2]}}, bytes(8), "x has no dtype, shape and data_off"),
        ({"x": entry(more=1)}, bytes(8), "x has no dtype, shape and data_offsets, or has more"),
        ({"x": entry(dtype="F4")}, bytes(8), "x is of dtype 'F4', known are F64"),
        ({"x": entry(dtype=["F32"])}, bytes(8), "x is of dtype"),
        ({"x": entry(shape=[-2])}, bytes(8), r"x has the shape \[-2\]"),
        ({"x": entry(shape=[2.0])}, bytes(8), r"x has the shape \[2.0\]"),
        ({"x": entry(shape=2)}, bytes(8), "x has the shape 2"),
        ({"x": entry(data_offsets=[8, 0])}, bytes(8), r"x has the offsets \[8, 0\]"),
        ({"x": entry(data_offsets=[0, 4, 8])}, bytes(8), "x has the offsets"),
        ({"x": entry(data_offsets=[-8, 0])}, bytes(8), "x has the offsets"),
        ({"x": entry(shape=[3])}, bytes(8), r"x takes 8 bytes, but F32 \(3,\) takes 12"),
        ({"x": entry(shape=[2**40, 2**40])}, bytes(8), "x has the shape"),
        ({"x": entry(shape=[10**4000] * 2)}, bytes(8), "x has the shape"),
        ({"x": entry(shape=[2**62] * 5000)}, bytes(8), "x has the shape"),
        ({"x": entry(data_offsets=[0, 10**4000])}, bytes(8), "x has the offsets"),
        ({"__metadata__": ["pt"], "x": F32}, bytes(8), "__metadata__ is not an object of texts"),
        ({"__metadata__": {"a": 1}, "x": F32}, bytes(8), "__metadata__ is not an object of"),
        (
            {
                "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                "x": entry(data_offsets=[2, 10]),
            },
            bytes(10),
            "x starts at byte 2, F32 is not aligned there",
        ),
        ({"a": F32, "x": entry(data_offsets=[4, 12])}, bytes(12), "x overlaps a"),
        ({"a": F32, "x": F32}, bytes(8), "x overlaps a"),
        ({"a": F32, "x": entry(data_offsets=[12, 20])}, bytes(20), "4 bytes before x belong"),
        ({"x": F32}, bytes(7), "cut off: x ends at byte"),
        ({"x": F32}, bytes(9), "1 bytes after x belong to nothing"),
        ({}, bytes(1), "1 bytes after the header belong to nothing"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, header, data, message):
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(InputError, match=message) as refusal:
        read_header(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("length", [3, 101, 100_000_001, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path, length):
    path = write_raw(tmp_path / "a", {"x": F32}, bytes(8), length=length)
    with pytest.raises(InputError, match=str(path)):
        read_header(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    save_file({"x": torch.ones(4), "y": torch.ones(2, 2)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut"):
            read_header(tmp_path / "cut")


def test_a_file_that_shrank_after_its_header_was_read(tmp_path):
    save_file({"x": torch.ones(4)}, tmp_path / "a")
    found = read_header(tmp_path / "a")["x"]
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    with open_file(tmp_path / "a") as file, pytest.raises(InputError, match="cut off, 4 bytes"):
        tensors.read_tensor(file, found)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "no", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_header(path)


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 9), slice(None), slice(2, 2), slice(4, 9)])
def test_some_rows_of_a_tensor(tmp_path, rows):
    """Of those bytes alone, as slices of a tensor are."""
    values = samples() | {"wide": torch.randn(4, 3, 2)}
    write(tmp_path / "a", layout_of(values), values.__getitem__)
    entries = read_header(tmp_path / "a")
    for name in ("half", "wide", "whole", "empty"):
        wanted, entry = values[name][rows], entries[name].rows(rows)
        assert entry.end - entry.start == wanted.nbytes
        with open_file(tmp_path / "a") as file:
            assert tensors.read_tensor(file, entry).equal(wanted)


def test_offsets_count_from_the_beginning_of_the_file(tmp_path):
    write_raw(tmp_path / "a", {"x": F32}, struct.pack("<2f", 1, 2))
    size = (tmp_path / "a").stat().st_size
    assert read_header(tmp_path / "a") == {"x": Entry(torch.float32, (2,), size - 8, size)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_largest(dtype):
    assert largest(torch.tensor([1.0, -3.0, 2.0], dtype=dtype)) == 3
    assert largest(torch.tensor([-1.0, -0.5], dtype=dtype)) == 1
    assert largest(torch.tensor([1.0, -math.inf], dtype=dtype)) == math.inf
    for values in ([math.nan, 1.0], [1.0, math.nan], [math.inf, math.nan]):
        assert math.isnan(largest(torch.tensor(values, dtype=dtype)))
    assert largest(torch.zeros(0, dtype=dtype)) == 0


def test_overflows():
    assert not overflows(65504.0, torch.float16)
    assert not overflows(65519.0, torch.float16)
    assert overflows(65520.0, torch.float16)
    assert not overflows(1e38, torch.bfloat16)
    assert overflows(3.4e38, torch.bfloat16)
    assert not overflows(3.4e38, torch.float32)
