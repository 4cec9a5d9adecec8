import os

import pytest

from anyv2v.errors import InputError
from anyv2v.files import atomic_path, check_output


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
    for left in (dead, keeping / "old"):
        left.mkdir(parents=True)
        (left / "new.mp4").write_bytes(b"half")
    with atomic_path(tmp_path / "a.mp4") as living:
        living.write_bytes(b"a")
        with atomic_path(tmp_path / "b.mp4") as temporary:
            temporary.write_bytes(b"b")
    # what was the user's before a run replaced it is nobody's to remove
    assert sorted(os.listdir(tmp_path)) == [".anyv2v-1111.part", "a.mp4", "b.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"a"


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
