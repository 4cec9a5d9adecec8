import errno
import os
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from filelock import Timeout

import anyv2v.runtime.atomic_files
from anyv2v.errors import InputError
from anyv2v.runtime.atomic_files import (
    MARKER,
    _lock,
    _remove,
    _remove_dead,
    atomic_path,
    check_output,
    scratch,
)


def test_the_file_appears_at_the_end_with_the_mode_that_umask_gives(tmp_path):
    target = tmp_path / "out.mp4"
    old = os.umask(0o027)
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"whole")
            assert not target.exists()
            assert temporary.parent.parent == tmp_path and temporary.suffix == ".mp4"
            assert temporary.parent.name.startswith(".")
    finally:
        os.umask(old)
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failure_and_the_old_file_stays(tmp_path, error):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dead, keeping = tmp_path / ".anyv2v-0000.part", tmp_path / ".anyv2v-1111.part"
    unmarked = tmp_path / ".anyv2v-2222.part"
    for left in (dead, keeping / "old"):
        left.mkdir(parents=True)
        (left / "new.mp4").write_bytes(b"half")
    for left in (dead, keeping):
        (left / MARKER).touch()
    unmarked.mkdir()
    with atomic_path(tmp_path / "a.mp4") as living:
        living.write_bytes(b"a")
        with atomic_path(tmp_path / "b.mp4") as temporary:
            temporary.write_bytes(b"b")
    # what was the user's before a run replaced it is nobody's to remove
    assert sorted(os.listdir(tmp_path)) == [".anyv2v-1111.part", "a.mp4", "b.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"a"


def test_what_a_run_leaves_that_is_killed_while_it_tries_an_output_goes_too(tmp_path):
    code = (
        "import os, sys, anyv2v.runtime.atomic_files as f; f._remove = lambda *_: os._exit(9)\n"
        "f.check_output(sys.argv[1], force=False)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.mp4")])
    assert done.returncode == 9 and len(os.listdir(tmp_path)) == 1
    check_output(tmp_path / "out.mp4", force=False)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_only_looks_like_ours_stays(tmp_path):
    theirs = tmp_path / ".anyv2v-0123abcd.part"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    with atomic_path(tmp_path / "out.mp4") as temporary:
        temporary.write_bytes(b"whole")
    check_output(tmp_path / "out.mp4", force=True)
    assert (theirs / "thesis.tex").read_text() == "years of work"


WRITER = """
import os, sys
from pathlib import Path
from anyv2v.runtime.atomic_files import atomic_path
folder, number, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
sys.stdin.readline()
for i in range(count):
    for name in (f"{number}-{i}.txt", "shared.txt"):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(f"{number} {i}")
assert not descriptors or len(os.listdir("/proc/self/fd")) == len(descriptors)
"""


@pytest.mark.parametrize("count", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_many_processes_write_into_one_folder_and_nothing_is_lost(tmp_path, count):
    code = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*code, str(n), str(count)], **pipes) for n in range(8)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    failures = [writer.communicate()[1] for writer in writers]
    assert failures == [""] * 8
    own = {f"{n}-{i}.txt": f"{n} {i}" for n in range(8) for i in range(count)}
    assert {name: (tmp_path / name).read_text() for name in own} == own
    assert sorted(os.listdir(tmp_path)) == sorted([*own, "shared.txt"])
    number, last = (tmp_path / "shared.txt").read_text().split()
    assert int(number) < 8 and int(last) == count - 1


@pytest.mark.parametrize("moment", ["before", "while it was marked", "before it was locked"])
def test_a_folder_that_another_run_takes_for_a_dead_one_is_not_used(tmp_path, monkeypatch, moment):
    folders, locks = [], []

    def is_dir(path):
        # what filelock asks after its mkdir has found the folder
        if len(folders) == 1:
            _remove_dead(path)
        return os.path.isdir(path)

    def lock(folder):
        folders.append(folder)
        if len(folders) == 1:
            # what another run may do between our mkdir and our lock
            if moment == "before":
                _remove_dead(folder)
            elif moment == "while it was marked":
                monkeypatch.setattr(Path, "is_dir", is_dir)
            else:
                locks.append(_lock(folder).acquire().lock)
        return _lock(folder)

    monkeypatch.setattr(anyv2v.runtime.atomic_files, "_lock", lock)
    with scratch(tmp_path) as folder:
        if locks:
            assert folder != folders[0]
            _remove(folders[0], *locks)
        monkeypatch.undo()
        for left in tmp_path.iterdir():
            _remove_dead(left)
        assert list(tmp_path.iterdir()) == [folder] and (folder / MARKER).exists()
        with pytest.raises(Timeout):
            _lock(folder).acquire()
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_files_are_written_where_the_file_system_has_no_locks(tmp_path, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".anyv2v-0000.part"
    left.mkdir()
    (left / MARKER).touch()
    with atomic_path(tmp_path / "a.mp4") as temporary:
        temporary.write_bytes(b"whole")
        with atomic_path(tmp_path / "b.mp4") as other:
            other.write_bytes(b"b")
    # whether its process lives cannot be known
    assert sorted(os.listdir(tmp_path)) == [left.name, "a.mp4", "b.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"whole"


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_stays_open(tmp_path):
    """Of writing, of failing, of clearing what others left, and of seeing what others hold."""

    def write(name="out.mp4"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_bytes(b"whole")

    write()
    before = descriptors()
    for _ in range(3):
        write()
        with scratch(tmp_path):
            pass
        check_output(tmp_path / "new.mp4", force=False)
        for error in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(error), atomic_path(tmp_path / "out.mp4"):
                raise error
        for name in (".anyv2v-0000.part", ".anyv2v-1111.part"):
            (tmp_path / name).mkdir()
            (tmp_path / name / MARKER).touch()
        (tmp_path / ".anyv2v-1111.part" / "old").mkdir(exist_ok=True)
        write()
        with atomic_path(tmp_path / "a.mp4") as living:
            living.touch()
            # these look at the living one's folder, and leave it
            write()
            check_output(tmp_path / "new.mp4", force=False)
        shutil.rmtree(tmp_path / ".anyv2v-1111.part")
    assert descriptors() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_locks_are_released_and_not_left_to_their_finalizers(tmp_path, monkeypatch):
    """Of writing, of failing, of clearing, and of a file that is ended in another thread."""
    locks, make = [], anyv2v.runtime.atomic_files._lock

    def made(folder):
        locks.append(make(folder))
        return locks[-1]

    monkeypatch.setattr(anyv2v.runtime.atomic_files, "_lock", made)
    before = descriptors()
    for name in (".anyv2v-0000.part", ".anyv2v-1111.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).touch()
    (tmp_path / ".anyv2v-1111.part" / "old").mkdir()
    with suppress(RuntimeError), scratch(tmp_path):
        raise RuntimeError
    assert len(locks) == 3 and descriptors() == before
    writing, paths = atomic_path(tmp_path / "out.mp4"), []
    thread = Thread(target=lambda: paths.append(writing.__enter__()))
    thread.start()
    thread.join()
    paths[0].write_bytes(b"whole")
    writing.__exit__(None, None, None)
    assert (tmp_path / "out.mp4").exists() and len(locks) == 5 and descriptors() == before


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a folder"])
def test_a_scratch_folder_goes_with_all_that_is_in_it_and_nothing_else(tmp_path, kind):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with scratch(tmp_path) as folder:
        assert folder.parent == tmp_path and os.listdir(folder) == [MARKER]
        made = folder / "new"
        if kind == "file":
            made.write_text("half")
        elif kind == "folder":
            (made / "deep").mkdir(parents=True)
            (made / "deep" / "half").touch()
        else:
            made.symlink_to(other / "mine.txt" if "file" in kind else other)
    assert os.listdir(tmp_path) == ["other"] and (other / "mine.txt").read_text() == "mine"


def test_a_scratch_folder_that_is_gone_already_is_no_error(tmp_path):
    with scratch(tmp_path) as folder:
        shutil.rmtree(folder)
    assert os.listdir(tmp_path) == []


def test_a_folder_of_a_dead_run_that_cannot_go_hinders_nobody(tmp_path, monkeypatch):
    """As where another user's run was killed, or NFS still holds a file of it."""
    left = tmp_path / ".anyv2v-0000.part"
    (left / "new").mkdir(parents=True)
    (left / MARKER).touch()
    (left / "new.mp4").touch()

    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refused)
        patch.setattr(os, "unlink", refused)
        patch.setattr(type(tmp_path), "unlink", refused)
        patch.setattr(type(tmp_path), "rmdir", refused)
        with atomic_path(tmp_path / "out.mp4") as temporary:
            temporary.write_bytes(b"whole")
    assert (tmp_path / "out.mp4").read_bytes() == b"whole"


def test_what_can_go_of_a_scratch_folder_goes_beside_what_cannot(tmp_path, monkeypatch):
    """As where NFS still holds a file in a folder of it."""
    removed = os.rmdir

    def refused(path, *rest, **named):
        if Path(path).name == "held":
            raise OSError(errno.EBUSY, "Device or resource busy")
        removed(path, *rest, **named)

    with scratch(tmp_path) as folder:
        (folder / "a" / "held").mkdir(parents=True)
        (folder / "b").write_bytes(b"half")
        monkeypatch.setattr(os, "rmdir", refused)
    assert {path.name for path in tmp_path.rglob("*")} == {folder.name, "a", "held"}


def test_a_link_to_a_name_without_a_suffix_can_be_written(tmp_path):
    # as git-annex, DVC and object stores keep files
    (tmp_path / "store").mkdir()
    link = tmp_path / "out.mp4"
    link.symlink_to(tmp_path / "store" / "0a1b2c")
    check_output(link, force=False, suffixes=(".mp4",))
    with atomic_path(link) as temporary:
        assert temporary.suffix == ".mp4"
        temporary.write_bytes(b"whole")
    assert link.is_symlink() and (tmp_path / "store" / "0a1b2c").read_bytes() == b"whole"


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_what_is_replaced_leaves_its_permissions(tmp_path, mode):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    target.chmod(mode)
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        temporary.chmod(0o600)
    assert stat.S_IMODE(target.stat().st_mode) == mode and target.read_bytes() == b"new"


def test_what_is_no_plain_file_or_read_only_is_never_replaced(tmp_path):
    pipe, device, locked = (tmp_path / f"{n}.mp4" for n in ("pipe", "device", "locked"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/null")
    locked.touch(0o444)
    for path, says in ((pipe, "pipe"), (device, "device"), (locked, "read-only")):
        with pytest.raises(InputError, match=says):
            check_output(path, force=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "out.mp4"
    link.symlink_to(tmp_path / "there" / "real.mp4")
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"whole")
    assert link.is_symlink() and (tmp_path / "there" / "real.mp4").read_bytes() == b"whole"


def test_a_good_output_passes_and_leaves_nothing(tmp_path):
    check_output(tmp_path / "out.MP4", force=False, suffixes=(".mp4",))
    (tmp_path / "old").touch()
    check_output(tmp_path / "old", force=True)
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("old.mp4", "--force"),
        ("missing/out.mp4", "no folder"),
        ("old.mp4/out.mp4", "no folder"),
        ("folder.mp4", "is a folder"),
        ("out.gif", ".mp4, .mov"),
        ("out", ".mp4, .mov"),
        ("n" * 300 + ".mp4", "cannot write"),
    ],
)
def test_a_bad_output_is_refused_in_one_line(tmp_path, name, says):
    (tmp_path / "old.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError) as caught:
        check_output(tmp_path / name, force=False, suffixes=(".mp4", ".mov"))
    assert says in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "missing").exists()


def test_a_folder_that_takes_no_files_is_refused():
    # not a matter of permission bits: it holds for root too
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc here")
    with pytest.raises(InputError, match="cannot write /proc/self/out.mp4"):
        check_output("/proc/self/out.mp4", force=True)
