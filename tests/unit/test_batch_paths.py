"""Inputs and outputs that are URLs, with file systems in memory and of this machine."""

import io
import sys

import pytest

from anyv2v.batch import paths
from anyv2v.errors import InputError


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def test_paths_and_urls_of_this_machine_stay(tmp_path):
    path = tmp_path / "a b%20.mp4"
    assert paths.local(str(path), tmp_path / "fetched") == path
    assert paths.local(f"file://{path}", tmp_path / "fetched") == path
    assert not (tmp_path / "fetched").exists()
    assert not paths.is_url("C:/clip.mp4") and not paths.is_url("c://clip.mp4")
    assert paths.is_url("s3://bucket/clip.mp4")


def test_a_far_file_is_fetched_once_and_again_when_it_has_changed(memory, tmp_path):
    memory.pipe("/clips/ballet.mp4", b"first")
    opened = []
    get_file = memory.get_file
    memory.get_file = lambda *names: (opened.append(names[0]), get_file(*names))
    try:
        one = paths.local("memory://clips/ballet.mp4", tmp_path)
        two = paths.local("memory://clips/ballet.mp4", tmp_path)
        memory.pipe("/clips/ballet.mp4", b"second one")
        three = paths.local("memory://clips/ballet.mp4", tmp_path)
    finally:
        del memory.get_file
    assert one == two != three and opened == ["/clips/ballet.mp4"] * 2
    assert one.name == three.name == "ballet.mp4"
    assert (one.read_bytes(), three.read_bytes()) == (b"first", b"second one")


def test_a_far_folder_keeps_its_form(memory, tmp_path):
    for i in range(3):
        memory.pipe(f"/clips/ballet/{i:05d}.png", bytes([i]))
    memory.pipe("/clips/ballet/masks/a.png", b"mask")
    folder = paths.local("memory://clips/ballet", tmp_path)
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}
    frames = {f"{i:05d}.png": bytes([i]) for i in range(3)}
    assert folder.name == "ballet" and found == {**frames, "masks/a.png": b"mask"}


def test_a_broken_transfer_leaves_nothing(memory, tmp_path):
    memory.pipe("/clips/ballet.mp4", b"whole")

    def broken(name, place):
        with open(place, "wb") as file:
            file.write(b"who")
        raise OSError("the line is dead")

    memory.get_file = broken
    try:
        with pytest.raises(InputError, match="ballet.mp4: cannot be read: the line is dead"):
            paths.local("memory://clips/ballet.mp4", tmp_path)
    finally:
        del memory.get_file
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == []
    assert paths.local("memory://clips/ballet.mp4", tmp_path).read_bytes() == b"whole"


def test_outputs_are_written_whole(memory, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_bytes(b"film")
    paths.put(tmp_path / "out.mp4", "memory://results/ballet/out.mp4")
    assert memory.cat("/results/ballet/out.mp4") == b"film"
    paths.put(tmp_path / "out.mp4", f"file://{tmp_path}/new/far.mp4")
    assert (tmp_path / "new" / "far.mp4").read_bytes() == b"film"

    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError("the disk is dead")

    monkeypatch.setattr("builtins.open", lambda *a: Broken())
    with pytest.raises(InputError, match="cannot be written: the disk is dead"):
        paths.put(tmp_path / "other.mp4", "memory://results/ballet/out.mp4")
    monkeypatch.undo()
    assert memory.cat("/results/ballet/out.mp4") == b"film"


def test_what_is_missing_is_said_in_one_line(memory, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="memory://no/clip.mp4: there is no such file"):
        paths.local("memory://no/clip.mp4", tmp_path)
    with pytest.raises(InputError, match="nowhere://a/b.mp4: .*nowhere"):
        paths.local("nowhere://a/b.mp4", tmp_path)
    memory.pipe("/clips/..", b"")
    with pytest.raises(InputError, match="file of this name"):
        paths.local("memory://clips/..", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"needs fsspec: pip install '\.\[urls\]'"):
        paths.local("s3://bucket/clip.mp4", tmp_path)


def test_messages_hold_no_secrets():
    told = paths.shown("https://me:secret@host/clip.mp4?signature=secret")
    assert told == "https://host/clip.mp4"
