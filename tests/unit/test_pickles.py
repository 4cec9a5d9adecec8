"""Archives made to be read differently by who checks them and by who unpickles them."""

import collections
import io
import struct
import zipfile
import zlib

import pytest
import torch

from anyv2v import InputError
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

    monkeypatch.setattr(torch.Tensor, "clone", broken)
    with pytest.raises(InputError, match=f"{path}: a cannot be read: INTERNAL ASSERT FAILED$"):
        file.read("a")
