"""Names of repositories of the Hugging Face hub and its caches, given where weights are wanted."""

import os
from pathlib import Path

import pytest

from anyv2v.cli.main import main
from anyv2v.errors import InputError
from anyv2v.weights.checkpoint import Checkpoint
from anyv2v.weights.hub import name_of, only_snapshot, snapshots


@pytest.fixture
def cache(tmp_path):
    """cache(main, *others): with snapshots of these names, each newer than the one before."""

    def make(*names, main=None, name="models--ali-vilab--i2vgen-xl"):
        folder = tmp_path / "hub" / name
        (folder / "refs").mkdir(parents=True)
        (folder / "snapshots").mkdir()
        for age, commit in enumerate(names):
            (folder / "snapshots" / commit).mkdir()
            os.utime(folder / "snapshots" / commit, (1e9 + age, 1e9 + age))
        if main is not None:
            (folder / "refs" / "main").write_text(main)
        return folder

    return make


def test_the_main_branch_comes_first_then_the_newest(cache):
    folder = cache("old", "main", "newer", "newest", main="main")
    expected = [folder / "snapshots" / name for name in ("main", "newest", "newer", "old")]
    for given in (folder, folder / "snapshots", folder.parent):
        assert snapshots(given) == expected
    (folder / "refs" / "main").unlink()
    assert [path.name for path in snapshots(folder)] == ["newest", "newer", "main", "old"]


def test_other_folders_are_none(cache, tmp_path, weights, snapshot):
    folder = cache("one")
    for given in (tmp_path, folder / "snapshots" / "one", folder / "refs", weights, snapshot, "no"):
        assert snapshots(given) == []
        assert only_snapshot(given) == type(tmp_path)(given)
    (tmp_path / "snapshots").mkdir()
    assert snapshots(tmp_path) == snapshots(tmp_path / "snapshots") == []


def test_several_or_none_are_refused(cache):
    folder = cache("a", "b", main="a")
    with pytest.raises(InputError, match=r"2 snapshots; give one: .*/a, .*/b"):
        only_snapshot(folder)
    with pytest.raises(InputError, match="without a snapshot"):
        only_snapshot(cache(name="models--empty"))


def test_weights_name_the_snapshot(cache, weights):
    folder = cache("a", "b", main="a")
    for given in (folder, folder / "snapshots"):
        with pytest.raises(InputError) as error:
            Checkpoint.open(given)
        assert f"anyv2v convert {folder}/snapshots/a NEW_FOLDER" in str(error.value)
        assert f"{folder}/snapshots/b" in str(error.value)
    # somebody published a folder of ours
    (folder / "snapshots" / "a").rmdir()
    (folder / "snapshots" / "a").symlink_to(weights)
    with pytest.raises(InputError, match=f"give {folder}/snapshots/a"):
        Checkpoint.open(folder)


def test_convert_takes_the_only_snapshot(cache, snapshot, tmp_path, capfd):
    folder = cache(main="abc")
    (folder / "snapshots" / "abc").symlink_to(snapshot)
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    out, err = capfd.readouterr()
    assert err.startswith("anyv2v: ") and f"{folder}/snapshots/abc was read" in err
    (folder / "snapshots" / "def").mkdir()
    assert main(["convert", str(folder / "snapshots"), str(tmp_path / "more")]) == 2
    assert "2 snapshots" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text, name",
    [
        ("ali-vilab/i2vgen-xl", ("ali-vilab/i2vgen-xl", None)),
        ("a/b.c_d-1", ("a/b.c_d-1", None)),
        ("a/b@main", ("a/b", "main")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("a/b@v1.0", ("a/b", "v1.0")),
        *(
            (path, None)
            for path in ("demo", "a/b/c", "/a/b", "./a/b", "../a", "a/../b", "~/a", "a/")
        ),
        # what no repository and no revision may be called
        *(
            (path, None)
            for path in ("a--b/c", "a/..", "a/b@", "a/b@../c", "a/b@.", "a b/c", "a/b\n")
        ),
        (Path("a/b"), None),
        (None, None),
        ("a/" + "b" * 5000, ("a/" + "b" * 5000, None)),
    ],
)
def test_what_names_a_repository(tmp_path, text, name):
    assert name_of(text, tmp_path) == name
    if name:
        assert str(name_of(text, tmp_path)) == text


def test_what_is_there_is_a_path(tmp_path):
    (tmp_path / "weights").mkdir()
    # or could have been there
    assert name_of("weights/i2vgen-xl", tmp_path) is None
    assert name_of("others/i2vgen-xl", tmp_path) is not None
    assert name_of("weights/i2vgen-xl", tmp_path / "weights") is not None
