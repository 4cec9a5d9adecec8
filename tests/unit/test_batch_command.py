"""`anyv2v batch`: its edits are those of `anyv2v edit`, in any order and number of runs."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.batch.tasks import Task, TaskEdit
from anyv2v.cli import batch
from anyv2v.cli.batch_edits import Edits, Told
from anyv2v.cli.main import main
from anyv2v.cli.process import Signals
from anyv2v.long.run import LongRun
from anyv2v.pipeline.source import Unfinished
from tests.unit.test_batch import wait_for

SMALL = {"size": "32x32", "frames": 3, "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with three clips of 6 frames and three pictures, 32x32."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for i in range(3):
        frames = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        anyv2v.write_video(folder / f"c{i}.mp4", frames, fps=8)
        Image.fromarray(255 - frames[0]).save(folder / f"f{i}.png")
    return folder


def one_clip(folder, *edits, clip=0, **settings):
    """A clip with these edits: mappings of settings."""
    made = tuple(
        TaskEdit(
            f"c{clip}/e{i}.mp4",
            {"frame": str(folder / f"f{i % 3}.png"), "prompt": f"thing {i}", **edit},
            edit.get("command", "edit"),
        )
        for i, edit in enumerate(edits)
    )
    made = tuple(
        TaskEdit(x.output, {k: v for k, v in x.settings.items() if k != "command"}, x.command)
        for x in made
    )
    return Task(str(folder / f"c{clip}.mp4"), made, SMALL | settings)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(tasks, *words) -> (status, stdout, stderr), in an empty folder; outputs are in out."""
    monkeypatch.chdir(tmp_path)

    def run(tasks, *words):
        monkeypatch.setattr(batch, "read_tasks", lambda args: tasks)
        status = main(["batch", "jobs.yaml", "-o", "out", *map(str, words)])
        return status, *capfd.readouterr()

    return run


def sidecar(output):
    return json.loads(Path(f"{output}.json").read_text())


def sha256(output):
    return sidecar(output)["latents_sha256"]


def words_of(options):
    """The options of an edit as the command line has them."""
    return [x for name, v in options.items() for x in (f"--{name.replace('_', '-')}", str(v))]


@pytest.fixture
def inversions(monkeypatch):
    """The clips that were inverted."""
    found, invert = [], anyv2v.Editor.invert

    def counted(editor, video, *args, **options):
        found.append(video.frames.shape)
        return invert(editor, video, *args, **options)

    monkeypatch.setattr(anyv2v.Editor, "invert", counted)
    return found


@pytest.mark.slow
def test_edits_are_those_of_the_edit_command(run, folder, inversions):
    """Whatever else of the clip is edited, and although the clip is inverted once."""
    edits = (
        {"guidance": 4, "seed": 3, "random_ratio": 0.5},
        {"conv": 0.5, "spatial": 1.0, "temporal": 0.5},
        {"protect": "off", "guide": "patches", "start": 0},
        {"editor": "posterise", "frame": None},
    )
    task = one_clip(folder, *edits)
    status, out, _ = run([task])
    assert (status, len(inversions)) == (0, 1)
    assert out.splitlines()[-1] == "4 edits: 4 done, 0 failed"
    for i, edit in enumerate(task.edits):
        given = {k: v for k, v in {**SMALL, **edit.settings}.items() if v is not None}
        assert main(["edit", task.video, *words_of(given), "-o", f"{i}.mp4", "-q"]) == 0
        alone, made = sidecar(f"{i}.mp4"), sidecar(f"out/{edit.output}")
        assert alone["latents_sha256"] == made["latents_sha256"]
        assert alone["key"] == made["key"]
        for part in ("inputs", "weights", "seed", "evaluations", "residuals", "kept"):
            assert alone[part] == made[part], part
        names = alone["settings"].keys() - {"output"}
        assert {n: alone["settings"][n] for n in names} == {n: made["settings"][n] for n in names}


@pytest.mark.slow
def test_an_edit_does_not_depend_on_which_others_are_done(run, folder):
    task = one_clip(folder, {"conv": 1.0}, {"conv": 0.0, "temporal": 0.0}, {"spatial": 0.5})
    assert run([task])[0] == 0
    once = {edit.output: sha256(f"out/{edit.output}") for edit in task.edits}
    for edit in task.edits:
        os.remove(f"out/{edit.output}")
        status, out, _ = run([task])
        assert (status, sha256(f"out/{edit.output}")) == (0, once[edit.output])
        assert out.splitlines()[-1] == "3 edits: 1 done, 2 done before, 0 failed"


@pytest.mark.slow
def test_an_inversion_is_shared_by_edits_with_its_settings(run, folder, inversions):
    edits = (
        {},
        {"inversion_prompt": "noise"},
        {"guidance": 3},
        {"steps": 1},  # of the inversion too
        {"inversion_steps": 2},  # as it is by default
        {"start": 1},  # where the inversion ends, which is more exact there
        {"method": "ddim", "inversion_steps": 4},
        {"method": "ddim", "inversion_steps": 4, "steps": 4, "start": 2},
        {"frames": 4},
        {"command": "reconstruct", "frame": None},
    )
    status, _, err = run([one_clip(folder, *edits)])
    assert status == 0, err
    assert sorted(inversions) == [(3, 32, 32, 3)] * 5 + [(4, 32, 32, 3)]


def test_an_edit_that_fails_stops_no_other(run, folder):
    edits = ({"frame": str(folder / "missing.png")}, {})
    other = one_clip(folder, {}, clip=7)  # there is no such clip
    status, out, err = run([other, one_clip(folder, *edits)])
    assert status == 1
    assert out.splitlines()[-1] == "3 edits: 1 done, 2 failed, see out/failed.jsonl"
    failed = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [line["output"] for line in failed] == ["c7/e0.mp4", "c0/e0.mp4"]
    assert all(f"anyv2v: {x['output']}: {x['error']}" in err.splitlines() for x in failed)
    assert "missing.png" in failed[1]["error"] and "c7.mp4" in failed[0]["error"]


@pytest.mark.slow
def test_another_setting_does_not_replace_an_output(run, folder):
    assert run([one_clip(folder, {})])[0] == 0
    before = sha256("out/c0/e0.mp4")
    other = one_clip(folder, {"guidance": 2.5})
    status, _, err = run([other])
    assert status == 1 and sha256("out/c0/e0.mp4") == before
    assert "anyv2v: c0/e0.mp4: there is another output of this name" in err
    assert run([other], "--force")[0] == 0 and sha256("out/c0/e0.mp4") != before
    # --force does nothing twice
    assert "1 done before" in run([other], "--force")[1]


@pytest.mark.parametrize(
    "edits, said",
    [
        (({}, {"colour": 3}), "c0/e1.mp4: there is no option 'colour'"),
        (({}, {"steps": "many"}), "c0/e1.mp4: steps: 'many'"),
        (({"prompt": None},), "c0/e0.mp4: it needs prompt"),
        (({"weights": "nowhere"},), "nowhere"),
        (({"command": "demo"},), "c0/e0.mp4: demo is none of edit, reconstruct"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_done(run, folder, edits, said):
    status, out, err = run([one_clip(folder, {}, clip=1), one_clip(folder, *edits)])
    assert (status, out) == (2, "") and said in err and len(err.splitlines()) == 1
    assert not os.path.exists("out")


@pytest.mark.parametrize("names", [("a.mp4", "a.mp4"), ("../a.mp4",), ("/a.mp4",), ("x/../a.mp4",)])
def test_outputs_outside_or_twice_are_refused(run, folder, names):
    settings = one_clip(folder, {}).edits[0].settings
    edits = tuple(TaskEdit(name, settings) for name in names)
    status, _, err = run([Task(str(folder / "c0.mp4"), edits, SMALL)])
    assert status == 2 and names[-1] in err and not os.path.exists("out")


@pytest.mark.slow
def test_a_dry_run_tells_all_and_does_nothing(run, folder, capfd):
    made = [one_clip(folder, {}, {"conv": 1.0}, clip=i) for i in range(2)]
    status, out, _ = run(made, "--dry-run", "--device", "cpu")
    assert (status, os.listdir()) == (0, [])
    assert main(["plan", made[0].video, *words_of(SMALL), "--device", "cpu"]) == 0
    planned = capfd.readouterr().out
    evaluations = int(planned.split("at most ")[1].split()[0])
    branches = int(planned.split("invert, ")[1].split()[0])
    assert out.splitlines()[-1].startswith(
        f"2 clips: 0 edits done, 4 to do: at most {2 * evaluations} evaluations to invert, "
    )
    assert f"{made[0].video}: 0 done, 2 to do: at most {evaluations} evaluations" in out
    # of four edits; the step that injects has a branch more where its features are not recorded
    assert int(out.splitlines()[-1].split("invert, ")[1].split()[0]) == 4 * branches


@pytest.mark.parametrize(
    "given, environment, chosen",
    [
        ((), {}, [0, 1, 2]),
        (("--limit", 1), {}, [0]),
        (("--shard", "1/2"), {}, [1]),
        (("--shard", "0/2", "--limit", 2), {}, [0]),
        ((), {"RANK": "0", "WORLD_SIZE": "2"}, [0, 2]),
        # what is given counts
        (("--shard", "1/3"), {"RANK": "0", "WORLD_SIZE": "2"}, [1]),
    ],
)
def test_shards_and_limits_choose_clips(run, folder, monkeypatch, given, environment, chosen):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(batch.Plan, "print", lambda _, tasks: seen.extend(tasks) or True)
    made = [one_clip(folder, {}, clip=i) for i in range(3)]
    # options of the command line count for all
    made[0].settings["weights"] = "nowhere"
    assert run(made, "--dry-run", "--weights", "demo", *given)[0] == 0
    assert seen == [made[i] for i in chosen]


def test_a_shard_that_there_is_not_is_refused(run, folder):
    status, _, err = run([one_clip(folder, {})], "--shard", "3/3")
    assert status == 2 and "counted from 0" in err and not os.path.exists("out")


# long clips


@pytest.mark.slow
def test_windows_of_a_long_clip_are_run_by_several_processes(run, folder, monkeypatch, tmp_path):
    task = one_clip(folder, {"frames": "all", "window": 3, "shared": 0}, {})
    assert run([task])[0] == 0
    alone = sha256("out/c0/e0.mp4")
    os.rename("out", "before")
    # who ran which window
    ran, run_window = tmp_path / "ran", LongRun._run_window

    def noted(self, index, *args):
        with open(ran, "a") as file:
            file.write(f"{index} {os.getpid()}\n")
        if os.getpid() == here:
            # the other one shall come in time
            wait_for(ran.with_name("helped"))
        failed = run_window(self, index, *args)
        ran.with_name("helped").touch()
        return failed

    here = os.getpid()
    monkeypatch.setattr(LongRun, "_run_window", noted)
    helper = os.fork()
    if helper == 0:
        # no exception may come back to the test that runs in the other process
        try:
            edits = Edits(Told("out"), Signals())
            wait_for(ran)
            edits.help(task, 0)
            os._exit(0)
        finally:
            os._exit(1)
    status, _, err = run([task])
    assert status == 0, err
    assert os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) == 0
    assert sha256("out/c0/e0.mp4") == alone
    pairs = [line.split() for line in ran.read_text().splitlines()]
    assert sorted(window for window, _ in pairs) == ["0", "1", "2"]
    assert len({pid for _, pid in pairs}) == 2
    assert not [path for path in Path("out").rglob("*") if "unfinished" in path.name]


@pytest.mark.slow
def test_windows_are_inverted_once_for_all_edits(run, folder, monkeypatch):
    saved, save = [], Unfinished.save

    def noted(self, state, video, *args):
        saved.append(video.frames.shape)
        return save(self, state, video, *args)

    monkeypatch.setattr(Unfinished, "save", noted)
    long = {"frames": "all", "window": 3, "shared": 0}
    task = one_clip(folder, long, long | {"guidance": 3, "conv": 0.5})
    assert run([task])[0] == 0
    # each of three windows was inverted to its end by one of the edits
    assert saved == [(3, 32, 32, 3)] * 3
    for i, edit in enumerate(task.edits):
        given = {**SMALL, **edit.settings}
        assert main(["edit", task.video, *words_of(given), "-o", f"{i}.mp4", "-q"]) == 0
        alone, made = sidecar(f"{i}.mp4"), sidecar(f"out/{edit.output}")
        for part in ("latents_sha256", "key", "evaluations"):
            assert alone[part] == made[part], part


# URLs


@pytest.fixture
def far(monkeypatch, tmp_path):
    """A file system in memory, that a URL of the protocol memory names."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.mark.slow
def test_inputs_and_outputs_may_be_urls(folder, far, monkeypatch, capfd, tmp_path):
    for name in ("c0.mp4", "f0.png"):
        far.pipe(f"/in/{name}", (folder / name).read_bytes())
    edits = ({"frame": "memory://in/f0.png"}, {"frame": "memory://in/f0.png", "seed": 1})
    near = one_clip(folder, *edits)
    task = Task("memory://in/c0.mp4", near.edits, near.settings)
    monkeypatch.setattr(batch, "read_tasks", lambda args: [task])
    words = ["batch", "x", "-o", "memory://made/here", "-q"]
    assert main(words) == 0
    names = {"e0.mp4", "e0.mp4.json", "e1.mp4", "e1.mp4.json"}
    assert set(far.find("/made")) == {f"/made/here/c0/{name}" for name in names}
    made = json.loads(far.cat("/made/here/c0/e0.mp4.json"))
    picture = str(folder / "f0.png")
    given = {**SMALL, "frame": picture, "prompt": "thing 0"}
    assert main(["edit", near.video, *words_of(given), "-o", str(tmp_path / "alone.mp4")]) == 0
    alone = sidecar(tmp_path / "alone.mp4")
    assert (made["latents_sha256"], made["key"]) == (alone["latents_sha256"], alone["key"])
    # sent last: an output without it is made again
    far.rm("/made/here/c0/e1.mp4.json")
    capfd.readouterr()
    assert main(words) == 0 and "1 done, 1 done before" in capfd.readouterr().out
    # another machine has nothing of it
    shutil.rmtree(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    assert main(words) == 0 and "0 done, 2 done before" in capfd.readouterr().out


# keys


def key(folder, tmp_path, clip=0, **settings):
    task = one_clip(folder, {"frame": str(folder / "f0.png"), **settings}, clip=clip)
    return Edits(Told(str(tmp_path)), Signals()).key(task, task.edits[0])


def test_keys_tell_what_an_output_depends_on(folder, tmp_path):
    own = anyv2v.load("demo", device="cpu").defaults
    plain = key(folder, tmp_path)
    same = (
        {"steps": 2},
        {"guidance": own.guidance["text"]},
        {"inversion_steps": 2, "method": "fixed-point"},
        {"sample_fps": own.fps, "start_time": 0},
        {"conv": own.injection.conv},
        {"inject": {"conv": own.injection.conv}},
        {"device": "cpu", "offload": "on", "feature_memory": "1MB"},
        {"frame": os.path.relpath(folder / "f0.png")},
        {"negative_prompt": own.negative_prompt, "keep_unchanged": False},
    )
    assert [key(folder, tmp_path, **each) for each in same] == [plain] * len(same)
    other = (
        {"steps": 3},
        {"guidance": 2.5},
        {"inversion_steps": 3},
        {"inversion_prompt": "x"},
        {"method": "ddim", "inversion_steps": 2},
        {"sample_fps": 3},
        {"start_time": 0.25},
        {"frames": 4},
        {"size": "16x16"},
        {"conv": 0.75},
        {"inject": {"conv": 0.75, "spatial": 0.5}},
        {"frame": str(folder / "f1.png")},
        {"clip": 1},
        {"prompt": "another"},
        {"negative_prompt": "blur"},
        {"seed": 1},
        {"random_ratio": 0.5},
        {"start": 1},
        {"fit": "pad"},
        {"dtype": "float16"},
        {"protect": str(folder / "f1.png")},
        {"protect": "off"},
        {"guide": "patches"},
        {"window": 2},
        {"window": 3, "shared": 1},
        {"keyframe": f"1:{folder / 'f1.png'}"},
        {"keyframe": f"2:{folder / 'f1.png'}"},
        {"editor": "posterise", "frame": None},
        {"editor": "posterise", "frame": None, "editor_option": "colors=3"},
        {"paper": True},
        {"out_size": "source"},
    )
    keys = {str(each): key(folder, tmp_path, **each) for each in ({}, *other)}
    assert not [each for each, x in keys.items() if [*keys.values()].count(x) > 1]


def test_keys_follow_contents_and_not_names(folder, tmp_path):
    (tmp_path / "other.png").write_bytes((folder / "f0.png").read_bytes())
    plain = key(folder, tmp_path)
    assert key(folder, tmp_path, frame=str(tmp_path / "other.png")) == plain
    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    assert key(folder, tmp_path, frame=str(tmp_path / "other.png")) != plain
