"""Archives made to be read differently by who checks them and by who unpickles them."""

import collections
import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import pytest
import torch

from anyv2v import InputError
from anyv2v.convert import pickles
from anyv2v.convert.files import BinFile
from anyv2v.convert.pickles import check_pickle

# as a key of a dict it would be hashed, one tuple within the other, until the stack ends
DEEP = b"\x80\x02}" + b")" + b"\x85" * 400_000 + b"K\x01s."


def honest() -> dict[str, bytes]:
    """The entries of an archive that torch.save writes."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, stream)
    with zipfile.ZipFile(stream) as file:
        return {name: file.read(name) for name in file.namelist()}


ROOT = next(iter(honest())).partition("/")[0]
PICKLE = f"{ROOT}/data.pkl"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was given to torch.load"))
    return tmp_path / "weights.bin"


def write(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)


def check_refused(path, told=None):
    with pytest.raises(InputError, match=told) as error:
        check_pickle(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def moved(name, data=DEEP):
    """The honest entries with the pickle under another name."""
    return [(name if n == PICKLE else n, data if n == PICKLE else x) for n, x in honest().items()]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "name",
    [
        f"{ROOT}/DATA.PKL",
        f"{ROOT}/Data.pkl",
        f"{ROOT}/data.PKL",
        f"{ROOT}/inner/data.pkl",
        f"{ROOT}//data.pkl",
        "data.pkl",
        f"{ROOT}\\data.pkl",
        "other/data.pkl",
        f"{ROOT.upper()}/data.pkl",
        f"{ROOT}/data.pkl/",
        f"{ROOT}/data.pk",
    ],
)
def test_a_pickle_under_another_name(path, name, method):
    write(path, moved(name), method)
    check_refused(path)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "name", [f"{ROOT}/DATA.PKL", PICKLE, "other/data.pkl", f"{ROOT}/inner/data.pkl", "DATA.PKL"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_pickle(path, name, first):
    entries = list(honest().items())
    entries.insert(0 if first else len(entries), (name, DEEP))
    write(path, entries)
    check_refused(path)


def test_names_of_tensors_that_differ_in_case(path):
    write(path, [*honest().items(), (f"{ROOT}/Data/0", bytes(24))])
    check_refused(path, "lies in an archive with entries")


def test_a_name_with_an_end_within(path):
    write(path, [*honest().items(), (f"{ROOT}/data_pkl_x", DEEP)])
    # zipfile writes no such name
    path.write_bytes(path.read_bytes().replace(b"/data_pkl_x", b"/data.pkl\0x"))
    check_refused(path)


def test_an_archive_that_zipfile_does_not_find(path):
    """Behind its end there is what looks like the begin of another end."""
    write(path, moved(PICKLE))
    path.write_bytes(path.read_bytes() + b"PK\5\6")
    check_refused(path)


def test_an_archive_behind_another(path):
    write(path, honest().items())
    good = path.read_bytes()
    write(path, moved(PICKLE))
    path.write_bytes(good + path.read_bytes())
    check_refused(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_broken_deflate(path, seed):
    """Cut off, or with a byte changed; zlib.error, EOFError and what else zipfile may raise."""
    write(path, honest().items(), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = file.getinfo(PICKLE)
    start = entry.header_offset + 30 + len(PICKLE)
    if seed < 4:
        # the length in both headers says less than there is to read
        size = entry.compress_size * seed // 4
        for at in (entry.header_offset + 18, data.rindex(PICKLE.encode()) - 46 + 20):
            data[at : at + 4] = struct.pack("<I", size)
    else:
        data[start + seed * 7] ^= 0xFF
    path.write_bytes(data)
    check_refused(path, "its pickle is malformed")


def test_two_readers_of_one_archive(path, monkeypatch):
    """Whatever makes zipfile find another pickle than torch's reader finds."""
    write(path, moved(PICKLE))
    harmless = honest()[PICKLE]
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args: io.BytesIO(harmless))
    check_refused(path, "another one to torch.load")


def test_a_pickle_of_another_sum(path):
    """The bytes are good, their checksum is not: no reader should go on."""
    write(path, honest().items())
    data = path.read_bytes()
    crc = struct.pack("<I", zlib.crc32(honest()[PICKLE]))
    assert crc in data
    path.write_bytes(data.replace(crc, b"\1\2\3\4"))
    check_refused(path, "malformed")


def test_an_honest_archive_and_one_that_is_none(path, tmp_path, monkeypatch):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write(path, honest().items(), method)
        check_pickle(path)
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    check_pickle(path)  # torch.load refuses it
    monkeypatch.undo()
    write(path, honest().items())
    file = BinFile(path)
    assert torch.equal(file.read("a"), torch.arange(6.0))
    assert torch.equal(file.read("a", slice(1, 3)), torch.tensor([1.0, 2.0]))


def test_no_more_of_a_pickle_is_read_than_it_may_have(path, monkeypatch):
    """Sixteen megabytes of nothing deflate to sixteen kilobytes, and so would gigabytes."""
    monkeypatch.setattr(pickles, "LARGEST", 2**16)
    nothing = b"\x80\x02" + b"N0" * 2**15
    write(path, moved(PICKLE, nothing[: 2**16 - 2] + b"N."))
    check_pickle(path)
    write(path, moved(PICKLE, nothing[: 2**16 - 2] + b"N0."))
    check_refused(path, "its pickle is longer than 65536 bytes")
    write(path, moved(PICKLE, b"0" * 2**24), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        check_refused(path, "its pickle is longer than 65536 bytes")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_pickle_may_have_eight_megabytes():
    assert pickles.LARGEST == 8 * 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_a_mapped_file_is_let_go_in_between(tmp_path):
    """Else all of it would count as memory in use when it has been read once; and at one time it
    is mapped once.
    """
    path, opened, mapped = tmp_path / "weights.bin", [], []
    # 48 MB each, of which the file has four bytes
    wide = torch.ones(1).expand(2**12, 3 * 2**10)
    torch.save({name: wide for name in "abcdefgh"}, path)

    class Watched(BinFile):
        def _open(self):
            opened.append(len(mapped))
            return super()._open()

    file = Watched(path)
    for name in "abcdefgh":
        assert file.read(name)[0, 0] == 1
        with open("/proc/self/maps") as maps:
            mapped.append(sum(str(path) in line for line in maps))
    # for the layout and for the first tensor, then after 144 MB of 128 are read, and again
    assert opened == [0, 0, 3, 6] and set(mapped) == {1}


@pytest.mark.parametrize("rows", [None, slice(3, 40), slice(90, 200), slice(5, 5)])
def test_a_large_tensor_is_read_in_pieces(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(BinFile, "REMAP_AFTER", 1000)
    x = torch.arange(100 * 8 * 3).view(100, 8, 3).float()
    state = {"whole": x, "strided": x.transpose(0, 1), "bias": x[:, 0, 0], "scalar": x[4, 2, 1]}
    path = tmp_path / "weights.bin"
    torch.save(state, path)
    file = BinFile(path)
    for name, wanted in state.items():
        if wanted.ndim:
            found = file.read(name, rows)
            assert found.equal(wanted if rows is None else wanted[rows]) and found.is_contiguous()
    assert file.read("scalar").equal(state["scalar"])


def quantized(storage: str) -> bytes:
    """The honest pickle, of another storage."""
    return honest()[PICKLE].replace(b"FloatStorage", storage.encode())


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("storage", ["QInt8Storage", "QUInt8Storage", "QInt32Storage"])
def test_storages_that_no_weights_are_kept_in(tmp_path, storage):
    path = tmp_path / "weights.bin"
    write(path, moved(PICKLE, quantized(storage)))
    with pytest.raises(InputError, match=str(path)):
        BinFile(path)


def test_a_tensor_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    torch.save(collections.OrderedDict(a=torch.zeros(3)), path)
    file = BinFile(path)

    def broken(*args, **options):
        raise RuntimeError("INTERNAL ASSERT FAILED\nat somewhere")

    monkeypatch.setattr(torch.Tensor, "__setitem__", broken)
    with pytest.raises(InputError, match=f"{path}: a cannot be read: INTERNAL ASSERT FAILED$"):
        file.read("a")
