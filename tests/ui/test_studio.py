"""What the page runs is what its command line runs, for each user apart."""

import json
import shlex
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.cli.options import parser
from anyv2v.cli.ui_studio import Studio
from anyv2v.errors import InputError
from anyv2v.ui.sessions import Cancelled
from anyv2v.ui.streams import divided_streams

FEW = {"prompt": "a 'striped' diamond", "steps": 2}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    args = parser({"ui": print}).parse_args(["ui", "--device", "cpu"])
    return Studio(args, tmp_path_factory.mktemp("page"))


@pytest.fixture(autouse=True)
def streams():
    with divided_streams():
        yield


@pytest.fixture
def user(studio, request):
    yield studio.sessions.get(request.node.name)
    studio.sessions.end(request.node.name)


@pytest.fixture
def stages():
    return []


@pytest.fixture
def edit(studio, user, stages):
    """edit(**options) -> what was made; `stages` has the titles of its stages."""

    def edit(**options):
        stages.clear()

        def show(title, done, total, left):
            stages.extend([title] if title not in stages else [])

        given = {n.replace("_", "-"): x for n, x in options.items()}
        return studio.edit(user, FEW | given, show, user.begin())

    return edit


def by_command_line(command, given, folder):
    """Runs a copied command in a folder that has but the files that it reads."""
    for path in given:
        shutil.copy(path, folder)
    for line in command.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "anyv2v" and main([*words, "-q"]) == 0


def facts(path):
    """A sidecar, without where its files were."""
    found = json.loads((path.parent / f"{path.name}.json").read_text())
    for each in found["inputs"].values():
        each["path"] = each["path"].rpartition("/")[2]
    settings = found["settings"]
    for name in ("video", "frame", "output", "mask"):
        settings[name] = settings[name] and settings[name].rpartition("/")[2]
    return found


@pytest.mark.slow
def test_an_edit_is_that_of_its_command(studio, user, edit, stages, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, clip, frame = studio.example(user)
    options = {"seed": 3, "start_time": 0.125, "frames": "6", "inject": {"conv": 0.5}}
    made = edit(**options, guidance={"text": 2.0}, size="24")
    assert stages == ["invert", "edit"]
    by_command_line(made.command, [clip, frame], tmp_path)
    assert facts(tmp_path / "edit-1.mp4") == facts(made.edit)
    again, shown = (anyv2v.read_video(path).frames for path in (tmp_path / "edit-1.mp4", made.edit))
    assert np.array_equal(again, shown) and shown.shape == (6, 24, 24, 3)
    both, source = anyv2v.read_video(made.both), anyv2v.read_video(clip, (24, 24), 6, 8, 0.125)
    assert both.frames.shape == (6, 24, 48, 3) and both.fps == 8
    near = np.abs(both.frames.astype(int) - np.concatenate([source.frames, shown], axis=2))
    assert near.mean() < 6


@pytest.mark.slow
def test_the_next_edit_of_a_clip_inverts_nothing(studio, user, edit, stages, monkeypatch, tmp_path):
    _, clip, frame = studio.example(user)
    studio.look(user, FEW)
    assert "to invert" in studio.plan(user, FEW)
    edit(inject={"conv": 0.8})
    options = {"prompt": "a box", "seed": 1, "inject": {"conv": 0.5}, "guidance": {"text": 3.0}}
    assert "inverted already" in studio.plan(user, FEW | options)
    made = edit(**options)
    assert stages == ["edit"] and made.edit.name == "edit-2.mp4"
    # a clip that was kept gives the same bits
    monkeypatch.chdir(tmp_path)
    by_command_line(made.command, [clip, frame], tmp_path)
    assert facts(tmp_path / "edit-2.mp4")["latents_sha256"] == facts(made.edit)["latents_sha256"]
    edit(inject={"conv": 1.0})
    assert stages == ["invert", "edit"]
    edit(inject={"conv": 1.0}, start=1)
    assert stages == ["invert", "edit"]


@pytest.mark.slow
def test_a_sidecar_repeats_the_edit(studio, user, edit, monkeypatch, tmp_path):
    _, clip, frame = studio.example(user)
    made = edit()
    assert str(user.folder) not in made.files[1].read_text()
    for path in (clip, frame, made.files[1]):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["edit", "--config", "edit-1.mp4.json", "-o", "again.mp4", "-q"]) == 0
    assert facts(tmp_path / "again.mp4")["latents_sha256"] == facts(made.edit)["latents_sha256"]


@pytest.mark.slow
def test_a_frame_edited_here_is_made_by_the_first_command(
    studio, user, edit, monkeypatch, tmp_path
):
    studio.example(user)
    alpha = np.zeros((256, 256), np.uint8)
    alpha[64:, 32:] = 200
    mask = studio.draw(user, alpha)
    assert studio.draw(user, np.zeros((4, 4))) == "" and mask == "mask-1.png"
    user.mask = mask
    found, _ = studio.candidates(
        user, "posterise", {"mask": mask, "seed": 5}, {"colours": 3, "smooth": 0.005}, 4, 1
    )
    assert [path.name for path in found] == [f"frame-1-{i}.png" for i in (1, 2, 3, 4)]
    studio.choose(user, found[1].name)
    # what the editor does by default is not told
    assert "colours=3" in user.made_by and not any("smooth" in word for word in user.made_by)
    other = studio.draw(user, alpha)
    made = edit(protect=other)
    names = [path.name for path in made.files]
    assert names[:3] == ["edit-1.mp4", "edit-1.mp4.json", "side-by-side-1.mp4"]
    assert names[3:] == ["example.mp4", mask, other]
    monkeypatch.chdir(tmp_path)
    by_command_line(made.command, made.files[3:], tmp_path)
    assert (tmp_path / "frame-1-2.png").read_bytes() == found[1].read_bytes()
    assert facts(tmp_path / "edit-1.mp4")["latents_sha256"] == facts(made.edit)["latents_sha256"]
    assert facts(tmp_path / "edit-1.mp4")["kept"] == facts(made.edit)["kept"] > 0


def test_an_editor_without_a_seed_makes_one_frame(studio, user):
    studio.example(user)
    (found,), said = studio.candidates(user, "recolour", {"instruction": "teal"}, {}, 4, 1)
    assert found.name == "frame-1.png" and said == []
    with Image.open(found) as picture:
        assert picture.size == (256, 256)
    with pytest.raises(InputError, match="instruction"):
        studio.candidates(user, "recolour", {"instruction": ""}, {}, 1, 1)


def test_a_cancelled_edit_leaves_nothing(studio, user, edit):
    studio.example(user)
    before = {*user.folder.iterdir()}
    seen = []

    def show(title, done, total, left):
        seen.append((title, done))
        if (title, done) == ("edit", 1):
            user.cancel()
            # the next one, which is asked for at once, does not let it go on
            user.begin()

    with pytest.raises(Cancelled):
        studio.edit(user, FEW, show, user.begin())
    # the step in which it was cancelled is the last
    assert seen[-1] == ("edit", 1) and {*user.folder.iterdir()} == before
    waiting = user.begin()
    user.cancel()
    with pytest.raises(Cancelled):
        studio.edit(user, FEW, show, waiting)
    assert edit().edit.name == "edit-1.mp4"


@pytest.mark.slow
def test_what_is_read_is_told_before_the_edit(studio, user, tmp_path):
    frames = np.zeros((12, 48, 96, 3), np.uint8)
    frames[5:] = 255
    frames[:, :, 40:56] = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    anyv2v.write_video(tmp_path / "wide.mp4", frames, fps=8)
    user.clip = user.take(tmp_path / "wide.mp4")
    looked = studio.look(user, {})
    assert looked.text == "8 frames, 8 per second, at 32x32 pixels (the file has 96x48)."
    assert any(line.startswith("wide.mp4 is 96x48: 50% of its width") for line in looked.notices)
    with Image.open(looked.first) as picture:
        assert picture.size == (96, 48)
    assert anyv2v.read_video(looked.preview).frames.shape == (8, 32, 32, 3)
    looked = studio.look(user, {"frames": "all", "size": "32x16", "out-size": "source"})
    assert (
        looked.text
        == "12 frames, 8 per second, at 32x16 pixels (the file has 96x48), in 2 windows."
    )
    assert "for each of 2 windows" in studio.plan(user, {"frames": "all", "size": "32x16"})


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "clip.safetensors", "-x"])
def test_what_is_no_clip_is_refused_in_one_line(studio, user, tmp_path, name):
    (tmp_path / name).write_text("#EXTM3U\n/etc/passwd\n")
    user.clip = user.take(tmp_path / name)
    with pytest.raises(InputError) as error:
        studio.look(user, {})
    line = studio.explain(user, error.value)
    assert name in line and "\n" not in line and str(user.folder) not in line
    assert studio.plan(user, {}) == ""


def test_what_is_missing_is_told(studio, user, edit):
    with pytest.raises(InputError, match="give a clip"):
        edit()
    user.clip = "x.mp4"
    with pytest.raises(InputError, match="give an edited first frame"):
        edit()


def test_a_user_who_leaves_waits_for_no_run(studio, user):
    other, begun, left = studio.sessions.get("other"), threading.Event(), threading.Event()
    for each in (user, other):
        studio.example(each)
    studio.look(other, FEW)

    def show(title, done, total, left_):
        begun.set()
        assert left.wait(60)

    def run():
        with pytest.raises(Cancelled):
            studio.edit(other, FEW, show, other.begin())

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    # this would never return if it waited for the run, which waits for it
    studio.sessions.leave("other")
    left.set()
    thread.join()
    # what was kept for it went as the run ended
    assert studio.plan(other, FEW) == ""
    studio.sessions.end("other")


def test_an_edit_of_the_frame_ends_when_it_is_cancelled(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(600)")
    editor = f"slow=command command='{sys.executable} {program} {{input}} {{output}}'"
    args = parser({"ui": print}).parse_args(["ui", "--device", "cpu", "--editor", editor])
    (tmp_path / "page").mkdir()
    studio = Studio(args, tmp_path / "page")
    user = studio.sessions.get("one")
    studio.example(user)

    def cancel():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        user.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        studio.candidates(user, "slow", {}, {}, 1, user.begin())
    assert not user.made and not [*user.folder.glob("frame-*")]


def test_a_frame_has_its_command_whatever_was_chosen_meanwhile(studio, user):
    _, _, example = studio.example(user)
    found, _ = studio.candidates(user, "recolour", {"instruction": "teal"}, {}, 1, user.begin())
    studio.choose(user, found[0].name)

    def show(*_):
        user.frame = example.name

    made = studio.edit(user, FEW, show, user.begin())
    assert made.command.startswith("anyv2v edit-frame") and "--frame frame-1.png" in made.command
    assert not user.made_by
    studio.choose(user, found[0].name)
    assert "edit-frame" in user.made_by


def test_a_wrong_setting_is_told_without_the_command_line(studio, user):
    studio.example(user)
    with pytest.raises(InputError, match="--help") as error:
        studio.look(user, {"frames": "many"})
    line = studio.explain(user, error.value)
    assert "many" in line and "--help" not in line


def test_two_users_at_once_get_their_own(studio, user, tmp_path):
    users = [user, studio.sessions.get("another")]
    made = {}
    for one in users:
        studio.example(one)

    def run(i):
        made[i] = studio.edit(users[i], FEW | {"seed": i, "random-ratio": 0.5}, lambda *_: None, 1)

    threads = [threading.Thread(target=run, args=[i]) for i in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    hashes = [facts(made[i].edit)["latents_sha256"] for i in (0, 1)]
    assert hashes[0] != hashes[1] and [facts(made[i].edit)["seed"] for i in (0, 1)] == [0, 1]
    assert all(made[i].edit.parent == users[i].folder for i in (0, 1))
    studio.sessions.end("another")
    assert made[0].edit.exists() and not made[1].edit.exists()


def test_settings_that_follow_from_others(studio):
    usual = studio.usual({})
    assert usual["inject"] == {"conv": 0.8, "spatial": 0.0, "temporal": 0.0}
    assert (usual["steps"], usual["start"], usual["protect"]) == (50, 0, "auto")
    assert studio.usual({"preset": "style"})["inject"]["temporal"] == 1.0
    assert studio.usual({"guide": "patches", "steps": 20})["start"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, options",
    [
        ("consisti2v_weights", {"guidance": {"text": 20.0, "image": 2.0}, "seed": 1}),
        ("seine_weights", {"inject": {"cross": 0.5}, "seed": 1}),
    ],
)
def test_settings_of_other_backbones(folder, options, request, monkeypatch, tmp_path):
    weights = request.getfixturevalue(folder)
    args = parser({"ui": print}).parse_args(["ui", "--weights", str(weights), "--device", "cpu"])
    (tmp_path / "page").mkdir()
    (tmp_path / "here").mkdir()
    studio = Studio(args, tmp_path / "page")
    user = studio.sessions.get("one")
    _, clip, frame = studio.example(user)
    usual = studio.usual({})
    options = {n: usual[n] | x if isinstance(x, dict) else x for n, x in options.items()}
    options |= {"size": "64x64", "frames": "4", "steps": 4}
    assert studio.look(user, options).text.startswith("4 frames")
    made = [studio.edit(user, FEW | options, lambda *_: None, 1) for _ in range(2)][1]
    monkeypatch.chdir(tmp_path / "here")
    by_command_line(made.command, [clip, frame], tmp_path / "here")
    again = tmp_path / "here" / "edit-2.mp4"
    assert facts(again)["latents_sha256"] == facts(made.edit)["latents_sha256"]
