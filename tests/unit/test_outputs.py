"""What a command may write: never an input, never the weights, and nothing twice."""

from pathlib import Path

import pytest

from anyv2v.cli.outputs import Outputs
from anyv2v.errors import InputError
from anyv2v.media.video import SUFFIXES
from anyv2v.weights.packaged import PACKAGED

INPUTS = ("video", "frame", "reference", "mask")


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuses(says, **options):
    with pytest.raises(InputError, match=says):
        Outputs(**options).check(SUFFIXES)


@pytest.mark.parametrize("way", ["its name", "a link to it", "its whole path"])
@pytest.mark.parametrize("name", INPUTS)
def test_no_input_is_overwritten(here, name, way):
    """Not even with --force, by whichever name, and not by a saved frame either."""
    Path("mine.png").write_bytes(b"mine")
    Path("in.mkv").write_bytes(b"mine")
    for own, given in (("in.mkv", {"output": "{}"}), ("mine.png", {"save_frame": ["{}"]})):
        path = own if way != "its whole path" else str(here / own)
        if way == "a link to it":
            path = f"link{Path(own).suffix}"
            Path(path).symlink_to(own)
        given = {k: path if v == "{}" else [path] for k, v in given.items()}
        read = own if name == "video" else ["other.png", own]
        refuses(
            f"^-o {path}: is an input, which is never overwritten$",
            **({"output": "out.mp4"} | given | {name: read, "force": True}),
        )
        assert Path(own).read_bytes() == b"mine"


def test_nothing_is_written_among_the_weights(here):
    Path("weights/deep").mkdir(parents=True)
    for path in ("weights/out.mp4", "weights/deep/out.mp4"):
        refuses("is in the folder of the weights", output=path, weights="weights")
        refuses("is in the folder of the weights", output=["a.mp4", path], weights="weights")
    frame = ["weights/out.png"]
    refuses("is in the folder of the weights", output="a.mp4", save_frame=frame, weights="weights")
    Outputs(output="a.mp4", weights="weights").check(SUFFIXES)
    Path("demo").mkdir()
    # the word, which names no folder of the user's, but one of the package
    Outputs(output="demo/out.mp4").check(SUFFIXES)
    for name, folder in PACKAGED.items():
        refuses("is in the folder of the weights", output=str(folder / "out.mp4"), weights=name)


def test_no_two_outputs_are_one(here):
    refuses("^-o ./a.mp4: is given twice", output=["a.mp4", "./a.mp4"])
    refuses("^-o f.png: is given twice", output="a.mp4", save_frame=["f.png", "f.png"])
    for folder in ("one", "two"):
        Path(folder).mkdir()
    both = ["one/%03d.png", "one/b%03d.png"]
    refuses("needs a folder of its own, for its edit.json", output=both)
    Outputs(output=["one/%03d.png", "two/%03d.png", "a.mp4"], save_frame=["f.png"]).check(SUFFIXES)


@pytest.mark.parametrize("there", ["out.mp4", "f.png"])
def test_what_is_there_takes_force(here, there):
    Path(there).write_bytes(b"mine")
    options = {"output": "out.mp4", "save_frame": ["f.png"]}
    refuses(f"{there} already exists; --force", **options)
    Outputs(**options, force=True).check(SUFFIXES)
    assert Path(there).read_bytes() == b"mine"


def test_a_name_says_what_is_written(here):
    refuses("cannot write out.txt: the name must end in one of .mp4", output="out.txt")
    refuses("cannot write f.jpg: the name must end in one of .png", save_frame=["f.jpg"])
    with pytest.raises(InputError, match="must end in one of .png"):
        Outputs(output="out.mp4").check_one("a.mp4", (".png",))
