"""Whole clips on the command line: windows, --resume, keyframes, --protect, --guide, --out-size."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.cli.sidecar import latents_sha256
from anyv2v.long.run import LongRun
from tests import clips

FRAMES, WINDOW = 9, 4


def moving(count=FRAMES, width=64, height=64):
    """A bright square that moves two pixels per frame over a ramp."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += np.linspace(40, 120, width).astype(np.uint8)[:, None]
    for k in range(count):
        frames[k, 8:24, 4 + 2 * k : 20 + 2 * k] = (220, 60, 40)
    return frames


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(*args) -> (status, stdout, stderr), in a folder with clip.mp4 and its edited frame."""
    monkeypatch.chdir(tmp_path)
    frames = moving()
    anyv2v.write_video("clip.mp4", frames, fps=8)
    edited = anyv2v.read_video("clip.mp4").frames[0].copy()
    edited[8:24, 4:20] = (40, 90, 230)
    Image.fromarray(edited).save("edited.png")

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def edit(run, weights):
    """edit(*options) edits clip.mp4 in 2 steps and windows of 4 frames."""
    options = f"--weights {weights} --frame edited.png --prompt robot --size 64x64 --steps 2"
    options += f" --window {WINDOW} --device cpu -q"

    def edit(*words, video="clip.mp4", output="out.mp4"):
        return run("edit", video, "-o", output, *options.split(), *words)

    return edit


def sidecar(path="out.mp4"):
    with open(f"{path}.json" if path.endswith(".mp4") else path, encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.slow
def test_a_long_clip_is_edited_as_python_does(edit, editor):
    os.mkdir("frames")
    status, out, err = edit("--frames", "all", output="frames/%03d.png")
    assert (status, err) == (0, "")
    assert f"windows: 4 of {WINDOW} frames for {FRAMES} frames" in out
    assert f"frames/%03d.png: {FRAMES} frames, 64x64, 8 fps" in out
    made = sidecar("frames/edit.json")
    assert made["settings"]["frames"] == FRAMES and made["kept"] is None
    assert len(os.listdir("frames")) == FRAMES + 1  # and nothing unfinished
    source = editor.invert_long(anyv2v.read_video("clip.mp4", (64, 64)), window=WINDOW, steps=2)
    same = editor.edit_long(source, "edited.png", "robot", steps=2)
    assert same.latents.shape[2] == FRAMES
    # features are replayed there, and computed again here, which rounds otherwise
    assert np.abs(anyv2v.read_video("frames/%03d.png").frames.astype(int) - same.frames).max() <= 1


@pytest.mark.slow
def test_a_clip_of_one_window_is_edited_as_before(edit):
    edit("--frames", WINDOW)
    whole = sidecar()["latents_sha256"]
    edit("--frames", WINDOW, "--window", 0, "--force")
    assert sidecar()["latents_sha256"] == whole
    edit("--frames", WINDOW + 1, "--force")
    assert sidecar()["latents_sha256"] != whole


@pytest.mark.slow
def test_an_interrupted_edit_goes_on(edit, monkeypatch):
    # the encoder of videos is not the same to the bit in every run
    os.mkdir("whole")
    edit("--frames", "all", output="whole/%03d.png")
    os.mkdir("out")
    output = {"output": "out/%03d.png"}
    each, windows = LongRun._run_window, []

    def stops(self, index, *rest):
        if len(windows) == 2:
            raise KeyboardInterrupt
        windows.append(index)
        return each(self, index, *rest)

    monkeypatch.setattr(LongRun, "_run_window", stops)
    status, _, _ = edit("--frames", "all", **output)
    assert status != 0 and os.listdir("out") == ["%03d.png.unfinished"] and windows == [0, 1]
    monkeypatch.setattr(LongRun, "_run_window", each)
    other = ("--seed", "1", "--random-ratio", "0.5")
    status, _, err = edit("--frames", "all", "--resume", *other, **output)
    assert status == 2 and ".png.unfinished holds windows of a run with other" in err
    status, out, _ = edit("--frames", "all", "--resume", **output)
    assert status == 0 and "2 of them done" in out and len(os.listdir("out")) == FRAMES + 1
    made, whole = sidecar("out/edit.json"), sidecar("whole/edit.json")
    assert made["latents_sha256"] == whole["latents_sha256"]
    frames = [anyv2v.read_video(path).frames for path in ("out/%03d.png", "whole/%03d.png")]
    assert np.array_equal(*frames)


def test_what_an_edit_may_not_change_stays(edit):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save("mask.png")
    status, out, _ = edit("--frames", WINDOW, "--protect", "mask.png", output="frames/%03d.png")
    assert status == 2  # the folder is missing
    os.mkdir("frames")
    status, out, _ = edit("--frames", WINDOW, "--protect", "mask.png", output="frames/%03d.png")
    assert status == 0 and "50% of the pixels are the source's" in out
    assert sidecar("frames/edit.json")["kept"] == 0.5
    made, source = anyv2v.read_video("frames/%03d.png").frames, anyv2v.read_video("clip.mp4").frames
    assert np.array_equal(made[:, :, :32], source[:WINDOW, :, :32])
    assert not np.array_equal(made[:, :, 32:], source[:WINDOW, :, 32:])


@pytest.mark.slow
def test_auto_protects_what_the_edited_frame_left_alone(edit):
    os.mkdir("frames")
    status, out, _ = edit("--frames", "all", "--protect", "auto", output="frames/%03d.png")
    assert status == 0
    source = anyv2v.read_video("clip.mp4").frames
    made = anyv2v.read_video("frames/%03d.png").frames
    same = (made == source).all(-1).mean()
    assert abs(sidecar("frames/edit.json")["kept"] - same) < 0.05
    for k in range(FRAMES):
        # the square is not the source's, wherever it has moved to
        assert not (
            made[k, 10:22, 6 + 2 * k : 18 + 2 * k] == source[k, 10:22, 6 + 2 * k : 18 + 2 * k]
        ).all()


@pytest.mark.slow
def test_guides_and_keyframes_change_the_result_and_are_repeated_by_the_sidecar(edit, run):
    Image.fromarray(255 - anyv2v.read_video("clip.mp4").frames[6]).save("later.png")
    anyv2v.write_video("rough.mp4", 255 - moving(), fps=8)
    edit("--frames", "all")
    found = {sidecar()["latents_sha256"]}
    for words in (["--keyframe", "6:later.png"], ["--guide", "auto"], ["--guide", "patches"]):
        status, _, err = edit("--frames", "all", "--force", *words)
        assert (status, err) == (0, "")
        found.add(sidecar()["latents_sha256"])
    edit("--frames", "all", "--force", "--guide", "rough.mp4", "--keyframe", "6:later.png")
    made = sidecar()
    assert made["settings"]["keyframe"] == [f"6:{os.path.abspath('later.png')}"]
    assert made["settings"]["guide"] == os.path.abspath("rough.mp4")
    assert made["inputs"].keys() >= {"keyframe", "guide"}
    found.add(made["latents_sha256"])
    assert len(found) == 5
    run("edit", "--config", "out.mp4.json", "-o", "again.mp4", "-q")
    assert sidecar("again.mp4")["latents_sha256"] == made["latents_sha256"]


@pytest.fixture
def phone(run):
    """A clip as a phone films it: 128x96 lying on its side, 20 frames at 25 fps, with sound."""
    frames = np.stack([np.roll(clips.clip(1, 128, 96)[0], k, axis=1) for k in range(20)])
    sound = ("aac", 48_000, clips.tone(0.8), 0.0)
    clips.encode(Path("phone.mp4"), frames, sounds=[sound])
    clips.turn(Path("phone.mp4"), 0, 1, -1, 0)
    return anyv2v.read_video("phone.mp4")


@pytest.mark.slow
def test_the_source_comes_back_in_its_own_form(edit, phone):
    mask = np.zeros((128, 96), np.uint8)
    mask[64:] = 255
    Image.fromarray(mask).save("mask.png")
    words = ("--out-size", "source", "--protect", "mask.png", "--fit", "stretch")
    status, out, err = edit(*words, video="phone.mp4")
    assert status == 0 and "has sound" not in err
    made = anyv2v.read_video("out.mp4")
    assert made.frames.shape == phone.frames.shape == (20, 128, 96, 3) and made.fps == 25
    assert "20 frames, 96x128, 25 fps" in out
    assert sidecar()["kept"] == pytest.approx(0.5, abs=0.04)  # the mask is resized
    # but for the loss of the file's encoder
    errors = np.abs(made.frames.astype(int) - phone.frames).mean((0, 2, 3))
    assert errors[:60].max() < 3 and errors[68:].min() > 10
    # in brightness, for 4:2:0 has the color of every second pixel only
    weights = np.array((0.2126, 0.7152, 0.0722))
    ours, theirs = (x[:, :60] @ weights for x in (made.frames, phone.frames))
    assert 10 * np.log10(255**2 / np.square(ours - theirs).mean()) > 45
    (ours, begin), (theirs, first) = clips.heard("out.mp4"), clips.heard("phone.mp4")
    assert np.array_equal(ours, theirs) and begin == pytest.approx(first, abs=1e-3)
    with clips.av.open("out.mp4") as container:
        stream = container.streams.video[0]
        assert next(container.decode(stream)).rotation == 0
        assert float(stream.duration * stream.time_base) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(
    "words, said",
    [
        ("--keyframe 0:edited.png", "--keyframe: '0:edited.png' is not INDEX:IMAGE"),
        ("--keyframe 9:edited.png --frames all", "keyframe: 9 is not a whole number from 0 to 8"),
        ("--frames 4 --keyframe 2:none.png", "none.png: no such file"),
        ("--frames 4 --protect none.png", "none.png"),
        ("--frames 4 --guide none.mp4", "none.mp4"),
        ("--frames all --window 1", "window: 1 is the keyframe alone"),
        ("--frames all --shared 3", "shared: 3 is not a whole number from 0 to 2"),
        ("--frames some", "some"),
        ("--out-size huge", "huge"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(edit, words, said, monkeypatch):
    monkeypatch.setattr(anyv2v.Editor, "invert", None)
    status, _, err = edit(*words.split())
    assert status == 2 and err.count("\n") == 1 and said in err
    assert not os.path.exists("out.mp4.unfinished")


def test_a_foreign_folder_is_left_alone(edit):
    os.mkdir("out.mp4.unfinished")
    with open("out.mp4.unfinished/mine.txt", "w") as file:
        file.write("mine")
    status, _, err = edit("--frames", "all")
    assert status == 2 and "is no folder of an unfinished edit" in err
    assert os.listdir("out.mp4.unfinished") == ["mine.txt"]


def test_a_cut_is_told(edit, monkeypatch):
    monkeypatch.setattr(anyv2v.Editor, "invert", None)
    frames = moving(16)
    frames[9:] = 255 - np.flip(frames[9:], axis=1)
    anyv2v.write_video("cut.mp4", frames, fps=8)
    _, _, err = edit("--frames", "all", video="cut.mp4")
    assert "cut.mp4 is cut before frame 9" in err and "--keyframe 9:IMAGE" in err


def test_the_hash_of_latents_is_that_of_their_bytes():
    latents = torch.randn(1, 3, 7, 2, 4)
    whole = latents_sha256(lambda: [latents])
    import hashlib

    assert whole == hashlib.sha256(latents.numpy().tobytes()).hexdigest()
    assert whole == latents_sha256(lambda: iter(latents.split(1, 2)))


def test_a_source_longer_than_a_window_is_edited_as_it_was_inverted(run, weights, monkeypatch):
    # more frames than the 16 of a window
    anyv2v.write_video("clip.mp4", moving(18), fps=8)
    options = f"--weights {weights} --device cpu -q".split()
    inverted = "--size 64x64 --frames all --inversion-steps 2 -o clip.safetensors".split()
    assert run("invert", "clip.mp4", *inverted, *options)[0] == 0
    monkeypatch.setattr(anyv2v.Editor, "invert", None)
    words = "--frame edited.png --prompt robot --steps 2 -o out.mp4".split()
    status, out, _ = run("edit", "clip.safetensors", *words, *options)
    assert status == 0 and "windows" not in out and "18 frames" in out
    for option in ("--window", "--shared"):
        status, _, err = run("edit", "clip.safetensors", *words, *options, option, 2, "--force")
        assert status == 2 and f"{option} is fixed by clip.safetensors" in err


@pytest.mark.parametrize("wrong", ["--protect none.png", "--guide none.mp4", "--shared 3"])
def test_windows_are_kept_until_all_input_is_read(edit, wrong):
    os.mkdir("out.mp4.unfinished")
    window = Path("out.mp4.unfinished/window-00000-edit-000.safetensors")
    window.write_bytes(b"done")
    status, _, _ = edit("--frames", "all", *wrong.split())
    assert status == 2 and window.read_bytes() == b"done"
