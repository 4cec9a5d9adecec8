"""Stage one on the command line: both stages at once, candidates, and other tools as editors."""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v import loading
from anyv2v.cli.main import main
from anyv2v.errors import InputError
from anyv2v.frame_editors import EDITORS
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.command import Command

# what a tool does, by its first argument
TOOL = """
import subprocess, sys, time
from pathlib import Path
from PIL import Image, ImageOps

kind, source, output, *rest = sys.argv[1:]
picture = Image.open(source).convert("RGB")
if kind == "invert":
    ImageOps.invert(picture).save(output)
elif kind == "words":
    Path(rest[0]).write_text("\\n".join(rest[1:]))
    picture.save(output)
elif kind == "fails":
    print("progress 10 %")
    sys.exit("no such model:\\n  gone")
elif kind == "hangs":
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(3); open({rest[0]!r}, 'w')"])
    time.sleep(60)
elif kind == "leaves":
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(3); open({rest[0]!r}, 'w')"])
    picture.save(output)
elif kind == "text":
    Path(output).write_text("a picture")
elif kind == "double":
    picture.resize((2 * picture.width, 2 * picture.height)).save(output)
elif kind == "square":
    picture.resize((40, 90)).save(output)
"""


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    """tool(kind, *rest): an editor command."""
    path = tmp_path_factory.mktemp("a tool") / "tool.py"
    path.write_text(TOOL)

    def command(kind, *rest):
        words = " ".join(f"'{word}'" for word in rest)
        return f"'{sys.executable}' '{path}' {kind} {{input}} {{output}} {words}"

    return command


@pytest.fixture(scope="module")
def clip(tmp_path_factory, video):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    anyv2v.write_video(path, np.concatenate([video.frames] * 2), fps=8)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A red square on grey, 64x64, as a file."""
    frame = np.full((64, 64, 3), 128, np.uint8)
    frame[16:48, 16:48] = (200, 30, 30)
    path = tmp_path_factory.mktemp("picture") / "frame.png"
    Image.fromarray(frame).save(path)
    return path


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(*args) -> (status, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def small(weights):
    return [
        *("--weights", weights, "--size", "64x64", "--fit", "crop", "--frames", 3, "--steps", 2),
        *("--inversion-steps", 4, "--prompt", "a robot", "--device", "cpu"),
    ]


def check_refused(result, *words):
    status, out, err = result
    assert status == 2, err
    assert out == "" and err.startswith("anyv2v: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    assert not os.listdir()


# both stages


def test_both_stages_in_one_command(run, clip, small, tool):
    made = ("--editor-command", tool("invert"), "--save-frame", "f.png")
    status, out, err = run("edit", clip, *small, *made, "-o", "out.mp4", "-q")
    assert (status, err) == (0, "")
    assert out == "f.png\nout.mp4: 3 frames, 64x64, 8 fps\n"
    first = anyv2v.read_video(clip, size=(64, 64), frames=3, fps=8).frames[0]
    assert np.array_equal(np.array(Image.open("f.png")), 255 - first)
    # the same as with the frame that was kept
    assert run("edit", clip, *small, "--frame", "f.png", "-o", "again.mp4")[0] == 0
    made = [json.loads(Path(f"{name}.mp4.json").read_text()) for name in ("out", "again")]
    assert made[0]["latents_sha256"] == made[1]["latents_sha256"]
    files = [name for name in sorted(os.listdir()) if not name.endswith(".json")]
    assert files == ["again.mp4", "f.png", "out.mp4"]


def test_stage_one_is_over_before_stage_two_loads(run, clip, small, monkeypatch):
    order = []

    class Toy:
        needs = frozenset()

        def __call__(self, request, seeds):
            order.append("stage one")
            return [255 - request.frame for _ in seeds]

    load = loading.load

    def load_two(*args, **options):
        order.append("stage two")
        return load(*args, **options)

    monkeypatch.setattr("anyv2v.cli.first_frame.make", lambda *args, **kwargs: Toy())
    monkeypatch.setattr(loading, "load", load_two)
    assert run("edit", clip, *small, "--editor", "edges", "-o", "out.mp4")[0] == 0
    assert order == ["stage one", "stage two"]


def test_several_edits_have_each_its_instruction(run, clip, small):
    told = ["--instruction", "blue", "--instruction", "lime", "--prompt", "b", "-o", "a.mp4"]
    frames = ["-o", "b.mp4", "--save-frame", "a.png", "--save-frame", "b.png"]
    status, out, err = run("edit", clip, *small, "--editor", "recolour", *told, *frames)
    assert status == 0, err
    a, b = (np.array(Image.open(f"{name}.png")) for name in "ab")
    assert not np.array_equal(a, b)


def test_a_saved_source_has_its_first_frame(run, clip, weights, tool, tmp_path):
    few = ("--weights", weights, "--size", "64x64", "--frames", 3, "--inversion-steps", 2)
    assert run("invert", clip, *few, "--method", "ddim", "-o", "s.safetensors")[0] == 0
    assert run("edit-frame", "s.safetensors", "--editor", "edges", "-o", "f.png")[0] == 0
    first = anyv2v.read_video(clip, size=(64, 64), frames=3, fps=8).frames[0]
    assert np.array_equal(np.array(Image.open("f.png")), anyv2v.edit_frame(first, "edges"))
    made = ("--editor-command", tool("invert"), "--prompt", "x", "--steps", 2, "--weights", weights)
    status, out, err = run("edit", "s.safetensors", *made, "-o", "o.mp4")
    assert status == 0, err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--editor", "photoshop"], ["photoshop", "recolour"]),
        (["--editor", "recolour"], ["needs instruction"]),
        (["--editor", "recolour", "--instruction", "mauvish"], ["'mauvish' is no color"]),
        (["--editor", "palette"], ["needs reference"]),
        (["--editor", "edges", "--mask", "gone.png"], ["gone.png: no such file"]),
        (["--editor", "edges", "--editor-option", "detail"], ["'detail' is not NAME=VALUE"]),
        (["--editor", "edges", "--editor-option", "detail=x"], ["'x' is not a number"]),
        (["--editor", "edges", "--editor-option", "x=1"], ["no option 'x'", "strength, detail"]),
        (["--editor", "edges", "--editor-weights", "w"], ["no option 'weights'"]),
        (["--editor", "edges", "--save-frame", "f.jpg"], [".png"]),
        (
            ["--editor", "edges", "--save-frame", "a.png", "--save-frame", "b.png"],
            ["once for each"],
        ),
        (["--editor", "edges", "--frame", "f.png"], ["exclude each other"]),
        (["--editor", "edges", "--start", "2"], ["start"]),
        (["--editor", "edges", *["--instruction", "x"] * 3], ["given 3 times for 1 edits"]),
        (["--editor", "command"], ["needs --editor-command"]),
        (["--editor-command", "tool {input}"], ["{output}"]),
        (["--editor-command", "tool '{output}"], ["No closing quotation"]),
        (["--instruction", "blue"], ["--instruction needs an --editor"]),
        ([], ["--frame, --prompt and -o go together", "an --editor"]),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(run, clip, small, options, words, monkeypatch):
    def load(*args):
        raise AssertionError("stage two is loading")

    monkeypatch.setattr(loading, "load", load)
    check_refused(run("edit", clip, *small, *options, "-o", "out.mp4"), *words)


# stage one alone


def test_candidates_and_their_sheet(run, picture):
    run_once = ("edit-frame", picture, "--editor", "posterise", "-o", "f.png")
    status, out, err = run(*run_once, "--candidates", 3, "--seed", 5)
    assert (status, err) == (0, "")
    assert out.split() == ["f.png", "f-1.png", "f-2.png", "f-3.png", "f-sheet.png"]
    assert sorted(os.listdir()) == sorted([*out.split(), "f.png.json"])
    frame = np.array(Image.open(picture))
    for i in range(3):
        one = anyv2v.edit_frame(frame, "posterise", seed=5 + i)
        assert np.array_equal(np.array(Image.open(f"f-{i + 1}.png")), one)
    assert Path("f.png").read_bytes() == Path("f-1.png").read_bytes()
    sheet = np.array(Image.open("f-sheet.png"))
    doubled = frame.repeat(2, 0).repeat(2, 1)
    assert np.array_equal(sheet[24:152, 8:136], doubled)
    assert sheet.shape[1] == 4 * 136 + 8 and sheet[8:24, 8:136].min() < 128
    status, out, err = run(*run_once)
    assert status == 2 and "f.png already exists" in err


def test_candidates_may_be_called_like_numbered_files(run, picture):
    told = ("--editor", "posterise", "--candidates", 2, "-o", "%d.png")
    status, out, err = run("edit-frame", picture, *told)
    assert (status, err) == (0, "")
    assert out.split() == ["%d.png", "%d-1.png", "%d-2.png", "%d-sheet.png"]
    assert sorted(os.listdir()) == sorted([*out.split(), "edit.json"])


def test_a_mask_lets_only_its_part_change(run, picture, tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    told = ("--editor", "recolour", "--instruction", "blue", "--mask", "mask.png", "-o", "f.png")
    assert run("edit-frame", picture, *told)[0] == 0
    frame, found = (np.array(Image.open(p)) for p in (picture, "f.png"))
    assert np.array_equal(found[:14], frame[:14]) and np.array_equal(found[34:], frame[34:])
    assert (found[18:30, 20:44, 2] > found[18:30, 20:44, 0]).all()


def test_edit_frame_refuses(run, picture):
    begin = ("edit-frame", picture)
    check_refused(run(*begin, "-o", "f.png"), "needs an --editor", "recolour")
    check_refused(run(*begin, "--editor", "edges", "-o", picture), "is an input")
    check_refused(run(*begin, "--editor", "edges", "-o", "f.jpg"), ".png")
    check_refused(run("edit-frame", "gone.png", "--editor", "edges", "-o", "f.png"), "no such file")
    check_refused(
        run(*begin, "--editor", "edges", "--mask", picture, "-o", "gone/f.png"), "no folder"
    )


def test_a_new_editor_is_one_file_and_one_line(run, picture, tmp_path_factory, monkeypatch, capfd):
    folder = tmp_path_factory.mktemp("new")
    (folder / "negative_editor.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Negative:\n"
        "    '''The frame as a negative.'''\n"
        "    level: int = 255\n"
        "    needs = frozenset()\n"
        "    def __call__(self, request, seeds):\n"
        "        return [self.level - request.frame for _ in seeds]\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(EDITORS, "negative", "negative_editor:Negative")
    told = ("--editor", "negative", "--editor-option", "level=254", "-o", "f.png")
    assert run("edit-frame", picture, *told)[0] == 0
    frame, found = (np.array(Image.open(p)) for p in (picture, "f.png"))
    assert np.array_equal(found, 254 - frame)
    with pytest.raises(SystemExit) as done:
        main(["edit-frame", "--list"])
    assert done.value.code == 0
    listed = capfd.readouterr().out
    assert "negative         The frame as a negative." in listed
    assert "level (a whole number, else 255)" in listed


# other tools


def by_tool(run, picture, command, *options):
    told = ("--editor-command", command, *options, "-o", "f.png")
    return run("edit-frame", picture, *told)


def test_a_tool_is_told_words_as_they_are(run, picture, tool, tmp_path_factory):
    said = tmp_path_factory.mktemp("said") / "words"
    instruction = 'it\'s "red"; $(touch x) {output} `id` > y\\ *'
    command = tool("words", said, "{instruction}", "--text={instruction}", "{seed}", "{reference}")
    told = ("--instruction", instruction, "--reference", picture, "--seed", 7)
    status, _, err = by_tool(run, picture, command, *told)
    assert status == 0, err
    words = said.read_text().split("\n")
    assert words[:3] == [instruction, f"--text={instruction}", "7"]
    assert words[3].endswith("reference.png") and not os.path.exists(words[3])
    assert sorted(os.listdir()) == ["f.png", "f.png.json"]


@pytest.mark.parametrize(
    "kind, words",
    [
        ("fails", ["failed with status 1", "progress 10 % no such model: gone"]),
        ("nothing", ["wrote no {output}"]),
        ("text", ["cannot be read as an image"]),
        ("square", ["40x90", "64x64"]),
    ],
)
def test_what_goes_wrong_with_a_tool_is_told(run, picture, tool, kind, words):
    check_refused(by_tool(run, picture, tool(kind)), *words)


def test_a_picture_of_the_same_proportions_is_resized(run, picture, tool, caplog):
    assert by_tool(run, picture, tool("double"))[0] == 0
    assert "of 128x128 was resized to 64x64" in caplog.text
    frame, found = (np.array(Image.open(p)).astype(int) for p in (picture, "f.png"))
    assert np.abs(frame - found).mean() < 3


@pytest.mark.parametrize("kind", ["hangs", "leaves"])
def test_nothing_of_a_tool_goes_on_running(run, picture, tool, kind, tmp_path_factory):
    late = tmp_path_factory.mktemp("late") / "file"
    began = time.monotonic()
    result = by_tool(run, picture, tool(kind, late), "--editor-timeout", "1.5")
    if kind == "hangs":
        check_refused(result, "was ended after 1.5 s", "--editor-timeout")
        assert time.monotonic() - began < 30
    else:
        assert result[0] == 0
    time.sleep(3.5)
    assert not late.exists()


def test_a_tool_that_is_not_there(run, picture, tool):
    check_refused(
        by_tool(run, picture, "no-such-tool {output}"), "no-such-tool cannot run: No such file"
    )
    check_refused(
        by_tool(run, picture, tool("words", "x", "{instruction}")), "no instruction is given"
    )
    with pytest.raises(InputError, match="timeout"):
        Command("tool {output}", timeout=0)


WAITS = """
import os, subprocess, sys, time
from pathlib import Path
# the child of a shell, in a group of its own, as timeout(1) makes one
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
Path(sys.argv[1], "new").write_text(f"{os.getpid()} {child.pid}")
os.rename(Path(sys.argv[1], "new"), Path(sys.argv[1], "runs"))
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_tool_ends_with_a_run_that_is_killed(tmp_path, monkeypatch):
    """kill -9: within seconds nothing of it runs; its pictures go with the next run."""
    (tmp_path / "tool.py").write_text(WAITS)
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    command = f"{sys.executable} {tmp_path / 'tool.py'} {tmp_path} {{output}}"
    frame = FrameRequest(np.zeros((8, 8, 3), np.uint8))
    child = os.fork()
    if child == 0:
        try:
            Command(command)(frame, [0])
        finally:
            os._exit(1)
    until(lambda: (tmp_path / "runs").exists())
    (room,) = temporary.iterdir()
    private = [path.stat().st_mode & 0o77 for path in room.iterdir() if path.is_dir()]
    assert private == [0] and list(room.rglob("input.png"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pids = [int(pid) for pid in (tmp_path / "runs").read_text().split()]
    until(lambda: not any(map(alive, pids)))
    assert room.exists()
    assert Command("cp {input} {output}")(frame, [0])[0].shape == (8, 8, 3)
    assert not list(temporary.iterdir())


def until(done, seconds=10.0):
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


def alive(pid):
    """Not even waiting to be asked how it ended, by whoever took it over."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # there is no /proc
        return True
    return state != "Z"
