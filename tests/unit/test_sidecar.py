"""How an output was made, beside it and in it; and several edits of which one fails."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v.cli import sidecar
from anyv2v.cli.main import main
from anyv2v.kernels.choose import USED
from anyv2v.media.video import pyav
from anyv2v.media.writer import video_writer

SMALL = ("--size", "32x32", "--frames", "3", "--steps", "2", "--inversion-steps", "2", "-q")
# where it is not about features: finding out what they would take is half of so small an edit
SMALL += ("--feature-memory", "0")


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(*args) -> (status, stdout, stderr), in a folder with a clip and two pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    anyv2v.write_video("clip.mp4", frames, fps=8)
    for name, picture in (("a.png", 255 - frames[0]), ("b.png", frames[0] // 2)):
        Image.fromarray(picture).save(name)

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def made(name):
    return json.loads(Path(f"{name}.json").read_text())


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_sidecar_says_how_an_edit_was_made(run, monkeypatch):
    edits, each = [], anyv2v.Editor.edit_each

    def edit_each(*args, **options):
        for edit in each(*args, **options):
            edits.append(edit)
            yield edit

    monkeypatch.setattr(anyv2v.Editor, "edit_each", edit_each)
    # what another run of the process has used is none of this one's
    monkeypatch.setitem(USED, "attention", {"triton"})
    options = ("--random-ratio", "0.25", "--seed", "7", "--guidance", "2.5")
    status, _, err = run(
        "edit", "clip.mp4", "--frame", "a.png", "--prompt", "a щ", "-o", "out.mp4", *SMALL, *options
    )
    assert status == 0, err
    facts, editor = made("out.mp4"), anyv2v.load("demo", device="cpu")
    assert facts["settings"]["prompt"] == "a щ" and facts["settings"]["guidance"] == 2.5
    assert facts["settings"]["size"] == "32x32" and facts["settings"]["sample_fps"] == 8.0
    assert facts["settings"]["video"] == os.path.abspath("clip.mp4")
    assert facts["seed"] == 7
    assert facts["weights"] == {"path": "demo", "fingerprint": editor.fingerprint}
    inputs = {name: (Path(f["path"]).name, f["sha256"]) for name, f in facts["inputs"].items()}
    assert inputs == {
        "video": ("clip.mp4", sha256("clip.mp4")),
        "frame": ("a.png", sha256("a.png")),
    }
    latents = edits[0].latents.numpy().astype("<f4").tobytes()
    assert facts["latents_sha256"] == hashlib.sha256(latents).hexdigest()
    assert facts["versions"]["torch"] == torch.__version__
    source = editor.invert(anyv2v.read_video("clip.mp4", (32, 32), 3, 8), steps=2)
    assert facts["evaluations"] == source.evaluations
    assert facts["residuals"] == {str(i): r for i, r in source.residuals.items()}
    assert facts["kernels"]["attention"] == ["sdpa"]
    assert facts["kept"] == 0  # noise into other noise, of which nothing stays

    with pyav().open("out.mp4") as container:
        inside = json.loads(container.metadata["comment"])
    assert inside["latents_sha256"] == facts["latents_sha256"]
    assert inside["settings"]["video"] == "clip.mp4" and "residuals" not in inside
    assert os.getcwd() not in json.dumps(inside)


EDIT = ("edit", "clip.mp4", "--prompt", "x")
MADE = {
    "edit": (*EDIT, "--frame", "a.png", "-o", "out.mp4", "--random-ratio", "0.5", "--seed", "3"),
    "with an editor": (
        *EDIT,
        *("--editor", "posterise", "--seed", "5", "--save-frame", "kept.png", "-o", "out.mp4"),
    ),
    "ddim": (*EDIT, "--frame", "a.png", "-o", "out.mp4", "--method", "ddim", "--start", "1"),
    "invert": ("invert", "clip.mp4", "-o", "out.safetensors"),
    "reconstruct": ("reconstruct", "clip.mp4", "--prompt", "x", "-o", "out.mp4"),
    "several": (
        *(*EDIT, "--frame", "a.png", "-o", "out.mp4"),
        *("--frame", "b.png", "--prompt", "y", "-o", "two.mp4"),
    ),
    "from a source": ("edit", "s.safetensors", "--prompt", "x", "--frame", "a.png", "-o", "o.mp4"),
}


FAST = ("edit", "several", "invert")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MADE]
)
def test_a_sidecar_makes_the_same_latents_again(run, tmp_path, monkeypatch, name):
    args = list(MADE[name])
    small = ["--size", "32x32", "--frames", "3", "--inversion-steps", "2", "-q"]
    small += ["--steps", "2"] if args[0] != "invert" else []
    if name == "from a source":
        assert run("invert", "clip.mp4", "-o", "s.safetensors", *small[:-2])[0] == 0
        small = ["--steps", "2", "-q"]
    status, _, err = run(*args, *small)
    assert status == 0, err
    output = args[args.index("-o") + 1]
    facts = made(output)
    assert facts["latents_sha256"]

    # from elsewhere, with nothing but the file
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = f"again{Path(output).suffix}"
    status, _, err = run(args[0], "--config", f"../{output}.json", "-o", again, "-q")
    assert status == 0, err
    found = made(again)
    assert found["latents_sha256"] == facts["latents_sha256"]
    assert found["settings"] == facts["settings"] | {"output": os.path.abspath(again)}
    assert found["inputs"] == facts["inputs"]


def test_an_edited_frame_has_one_too(run):
    args = ("edit-frame", "a.png", "--editor", "posterise", "-o", "f.png", "--seed", "3")
    assert run(*args, "--candidates", "2")[0] == 0
    facts = made("f.png")
    assert facts["seed"] == 3 and facts["settings"]["candidates"] == 2
    before = Path("f.png").read_bytes()
    assert run("edit-frame", "--config", "f.png.json", "-o", "g.png")[0] == 0
    assert Path("g.png").read_bytes() == before


@pytest.mark.slow
def test_a_changed_input_is_said(run):
    assert run(*EDIT, "--frame", "a.png", "-o", "out.mp4", *SMALL)[0] == 0
    shutil.copy("b.png", "a.png")
    status, _, err = run("edit", "--config", "out.mp4.json", "-o", "again.mp4", "-q")
    assert status == 0
    assert f"{os.path.abspath('a.png')} has changed since out.mp4.json was written" in err
    # what is given in its place has not changed
    err = run("edit", "--config", "out.mp4.json", "-o", "b.mp4", "--frame", "b.png", "-q")[2]
    assert "has changed" not in err


def test_somebody_elses_file_in_its_place_is_not_overwritten(run):
    Path("out.mp4.json").write_text('{"precious": 1}')
    args = (*EDIT, "--frame", "a.png", "-o", "out.mp4", *SMALL)
    status, _, err = run(*args)
    assert status == 2 and "out.mp4.json already exists" in err
    assert run(*args, "--force")[0] == 0
    # one of ours whose video is gone is in nobody's way
    os.remove("out.mp4")
    assert run(*args)[0] == 0


def several(count):
    args = list(EDIT[:2])
    for i in range(count):
        args += ["--frame", "a.png" if i % 2 else "b.png", "--prompt", f"edit {i}"]
        args += ["-o", f"{i}.mp4"]
    return [*args, *SMALL]


@pytest.fixture
def broken(monkeypatch):
    """broken(prompt): sampling the edit with this prompt fails."""

    def broken(prompt):
        branches = anyv2v.load("demo").backbone.__class__.branches

        def fail(self, text, *rest):
            if text == prompt:
                raise RuntimeError("it overflows")
            return branches(self, text, *rest)

        monkeypatch.setattr(anyv2v.load("demo").backbone.__class__, "branches", fail)

    return broken


def test_one_edit_that_fails_in_sampling_takes_no_other_along(run, broken):
    broken("edit 6")
    status, out, err = run(*several(10))
    assert status == 1
    assert "6.mp4: RuntimeError: it overflows" in err
    whole = [f"{i}.mp4" for i in range(10) if i != 6]
    assert sorted(p for p in os.listdir() if p[0].isdigit() and p.endswith(".mp4")) == whole
    assert [line.split(":")[0] for line in out.splitlines() if line[0].isdigit()] == whole
    for i in (5, 7):
        facts = made(f"{i}.mp4")
        assert facts["settings"]["prompt"] == f"edit {i}"
        assert Path(facts["inputs"]["frame"]["path"]).name == ("a.png" if i % 2 else "b.png")


def test_one_edit_that_fails_in_writing_takes_no_other_along(run, monkeypatch):
    def full(path, *rest):
        if path == "1.mp4":
            raise OSError(28, "No space left on device")
        return video_writer(path, *rest)

    monkeypatch.setattr("anyv2v.cli.outputs.video_writer", full)
    status, _, err = run(*several(3))
    assert status == 1 and "anyv2v: 1.mp4: OSError: [Errno 28] No space left on device\n" in err
    assert {"0.mp4", "2.mp4"} <= set(os.listdir()) and "1.mp4" not in os.listdir()


def test_a_frame_that_cannot_be_read_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr(anyv2v.Editor, "invert", None)
    Path("b.png").write_bytes(b"no picture")
    status, out, err = run(*several(2))
    assert status == 2 and "b.png" in err and out == ""
    assert not [p for p in os.listdir() if p[0].isdigit()]


def test_python_gets_each_edit_or_why_it_failed(run, broken):
    editor = anyv2v.load("demo", device="cpu")
    source = editor.invert(anyv2v.read_video("clip.mp4", (32, 32), 3, 8), steps=2)
    broken("bad")
    requests = [anyv2v.EditRequest("a.png", text) for text in ("good", "bad", "better")]
    found = list(editor.edit_each(source, requests, steps=2))
    assert [type(x).__name__ for x in found] == ["Edit", "RuntimeError", "Edit"]
    alone = editor.edit(source, "a.png", "better", steps=2)
    assert torch.equal(found[2].latents, alone.latents)
    with pytest.raises(RuntimeError, match="it overflows"):
        editor.edit_many(source, requests, steps=2)


@pytest.mark.parametrize(
    ("output", "beside"),
    [("a/out.mp4", "a/out.mp4.json"), ("a/%05d.png", "a/edit.json"), ("f.png", "f.png.json")],
)
def test_where_it_lies(output, beside):
    assert sidecar.sidecar_of(output) == Path(beside)


def test_a_fingerprint_of_frames_is_of_all_their_files_and_names(tmp_path):
    for name, data in (("1.png", b"a"), ("2.png", b"b")):
        (tmp_path / name).write_bytes(data)
    folder, pattern = (sidecar.fingerprint(str(p)) for p in (tmp_path, tmp_path / "%d.png"))
    assert folder["sha256"] == pattern["sha256"]
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert sidecar.fingerprint(str(tmp_path))["sha256"] != folder["sha256"]
    assert sidecar.fingerprint(str(tmp_path / "absent"))["sha256"] is None


@pytest.mark.slow
def test_an_output_that_is_not_replaced_keeps_its_sidecar(run, monkeypatch):
    args = (*EDIT, "--frame", "a.png", "-o", "out.mp4", *SMALL)
    assert run(*args)[0] == 0
    before = {name: Path(name).read_bytes() for name in ("out.mp4", "out.mp4.json")}
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def full(*_, error=error):
            raise error

        monkeypatch.setattr("anyv2v.cli.outputs.video_writer", full)
        assert run(*args, "--force", "--seed", "3")[0] in (1, 130)
        assert {name: Path(name).read_bytes() for name in before} == before
    assert [name for name in os.listdir() if name.startswith(".")] == []


@pytest.mark.slow
def test_patterns_of_one_folder_have_but_one_sidecar(run):
    os.mkdir("frames")
    one = (*EDIT, "--frame", "a.png", "-o", "frames/a%02d.png")
    status, _, err = run(*one, "--frame", "b.png", "--prompt", "b", "-o", "frames/b%02d.png")
    assert status == 2 and "frames/b%02d.png: needs a folder of its own, for its edit.json" in err
    assert run(*one, *SMALL)[0] == 0
    # it is not of another that comes later, as long as there are frames of it
    other = (*EDIT, "--frame", "b.png", "-o", "frames/b%02d.png", *SMALL)
    status, _, err = run(*other)
    assert status == 2 and "frames/edit.json already exists" in err
    for frame in Path("frames").glob("a*.png"):
        frame.unlink()
    assert run(*other)[0] == 0


@pytest.mark.parametrize("command", ["./tool {input} {output}", "sh tool {input} {output}"])
def test_what_an_editor_names_is_found_from_elsewhere(run, tmp_path, monkeypatch, command):
    Path("tool").write_text('#!/bin/sh\ncp "$1" "$2"\n')
    os.chmod("tool", 0o755)
    status, _, err = run("edit-frame", "a.png", "-o", "f.png", "--editor-command", command)
    assert status == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, _, err = run("edit-frame", "--config", "../f.png.json", "-o", "g.png")
    assert status == 0, err
    assert Path("g.png").read_bytes() == Path("../f.png").read_bytes()


def test_paths_among_the_options_of_an_editor_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("adapter")
    given = ["adapter=adapter", "blocks=style", "scale=0.5"]
    whole = [f"adapter={tmp_path}/adapter", *given[1:]]
    assert sidecar.plain("editor_option", given) == whole


def test_what_a_method_has_not_is_not_said_again(run):
    args = (*EDIT, "--frame", "a.png", "-o", "out.mp4", *SMALL, "--method", "ddim")
    assert run(*args)[0] == 0
    assert made("out.mp4")["settings"]["tolerance"] is None
    err = run("edit", "--config", "out.mp4.json", "-o", "b.mp4", "-q")[2]
    assert "has no effect" not in err
