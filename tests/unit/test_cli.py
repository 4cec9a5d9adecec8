"""The command line: what it writes, what it refuses, and that nothing is left half done."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import anyv2v
from anyv2v.cli.main import main
from anyv2v.media import writer
from anyv2v.pipeline.cuda_graphs import Graphs
from anyv2v.weights.demo.scenes import CLEAR
from tests.oracles import golden

ROOT = Path(__file__).parents[2]
CARD = ROOT / "weights" / "demo"


@pytest.fixture(scope="module")
def clip(tmp_path_factory, video):
    """A video file of 32 frames at 16 fps, 128x64."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    anyv2v.write_video(path, np.concatenate([video.frames] * 8), fps=16)
    return path


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    path = tmp_path_factory.mktemp("frame") / "edited.png"
    Image.fromarray(golden.tensors("inputs")["edited_raw"].numpy()).save(path)
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
def edit(run, clip, frame, weights):
    """Runs an edit with small defaults, each of which may be replaced."""

    def edit(video=clip, output="out.mp4", extra=("--quiet",), **changed):
        options = {
            "frame": frame,
            "prompt": "a robot",
            "weights": weights,
            "size": "64x64",
            "fit": "crop",
            "frames": 3,
            "steps": 2,
            "inversion-steps": 4,
            "device": "cpu",
        } | {name.replace("_", "-"): value for name, value in changed.items()}
        pairs = [
            x for name, value in options.items() if value is not None for x in (f"--{name}", value)
        ]
        return run("edit", video, "-o", output, *pairs, *extra)

    return edit


@pytest.fixture
def written(monkeypatch):
    """The frames that went into each video file; the encoder's own bytes vary from run to run."""
    frames = {}

    @contextmanager
    def video_writer(path, *rest):
        pictures = []
        with writer.video_writer(path, *rest) as real:
            yield SimpleNamespace(write=lambda x: (pictures.append(x), real.write(x)))
        frames[path] = np.stack(pictures)

    monkeypatch.setattr("anyv2v.cli.outputs.video_writer", video_writer)
    return frames


@pytest.fixture
def no_inversion(monkeypatch):
    """What is wrong has to be found before the long work."""

    def invert(*args, **kwargs):
        raise AssertionError("the inversion has begun")

    monkeypatch.setattr(anyv2v.Editor, "invert", invert)


def check_refused(result, *words):
    """Exit 2, nothing on stdout, one line on stderr that has all the words, nothing written."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert err.startswith("anyv2v: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert str(word) in err, err
    assert not [p for p in os.listdir() if p.startswith(".") or p == "out.mp4"]


def test_an_edit_is_written(edit):
    status, out, err = edit()
    assert (status, err) == (0, "")
    assert out == "out.mp4: 3 frames, 64x64, 8 fps\n"
    video = anyv2v.read_video("out.mp4")
    assert video.frames.shape == (3, 64, 64, 3) and video.fps == 8
    assert sorted(os.listdir()) == ["out.mp4", "out.mp4.json"]


def test_the_command_line_does_what_python_does(edit, clip, frame, weights, written):
    assert edit(guidance=3.0, conv=1, spatial=0.5, temporal=0, seed=4, random_ratio=0.2)[0] == 0
    editor = anyv2v.load(weights, device="cpu")
    video = anyv2v.read_video(clip, size=(64, 64), frames=3, fps=8)
    result = editor.edit(
        editor.invert(video, steps=4),
        frame,
        "a robot",
        steps=2,
        guidance=3.0,
        injection=anyv2v.Injection(1, 0.5, 0),
        seed=4,
        random_ratio=0.2,
    )
    assert np.array_equal(written["out.mp4"], result.frames)


def test_a_saved_source_gives_the_same_edit(edit, run, clip, weights, written):
    assert edit()[0] == 0
    options = ("--weights", weights, "--size", "64x64", "--frames", 3, "--inversion-steps", 4)
    assert run("invert", clip, "-o", "clip.safetensors", *options)[0] == 0
    free = dict(size=None, frames=None, inversion_steps=None)
    assert edit("clip.safetensors", "again.mp4", **free)[0] == 0
    assert np.array_equal(written["out.mp4"], written["again.mp4"])
    os.remove("out.mp4")
    os.remove("again.mp4")
    check_refused(edit("clip.safetensors"), "--size is fixed by clip.safetensors")
    check_refused(
        edit("clip.safetensors", inversion_prompt="a man", **free), "--inversion-prompt is fixed"
    )
    check_refused(edit("clip.safetensors", steps=3, **free), "serves runs of 1, 2, 4 steps")


def test_several_edits_are_written_in_one_run(edit, run, frame, clip, weights, written):
    assert edit(prompt=None, extra=("--prompt", "a robot", "-q"))[0] == 0
    extra = ("--prompt", "a robot", "--frame", frame, "--prompt", "a bear", "-o", "bear.mp4", "-q")
    status, out, err = edit(output="both.mp4", prompt=None, extra=extra)
    assert (status, err) == (0, "")
    assert "both.mp4: 3 frames" in out and "bear.mp4: 3 frames" in out
    difference = np.abs(written["both.mp4"].astype(int) - written["out.mp4"])
    assert difference.max() <= 1
    assert not np.array_equal(written["bear.mp4"], written["both.mp4"])
    os.remove("out.mp4")
    check_refused(edit(extra=("--prompt", "a bear")), "go together: there are 1, 2 and 1")
    extra = ("--frame", frame, "--prompt", "a bear", "-o", "./new.mp4")
    check_refused(edit(output="new.mp4", extra=extra), "-o ./new.mp4: is given twice")
    assert not Path("new.mp4").exists()


def test_features_are_recorded_on_the_way_and_announced(edit, run, clip, weights, written):
    status, out, err = edit(inversion_steps=None)
    assert (status, err) == (0, "")
    assert re.match(r"features: 1 of 1 steps kept \(compact\): 0.02 MB on the device\nout.mp4", out)
    status, out, _ = edit(output="none.mp4", inversion_steps=None, feature_memory=0)
    assert status == 0 and "features" not in out
    assert np.abs(written["out.mp4"].astype(int) - written["none.mp4"]).max() <= 1
    status, out, _ = edit(output="little.mp4", inversion_steps=None, feature_memory="1kB")
    assert status == 0 and "0 of 1 steps kept; 0.02 MB are not" in out
    os.remove("out.mp4")
    check_refused(edit(feature_memory="much"), "'much' is not a size, such as 12GB")

    options = ("--weights", weights, "--size", "64x64", "--frames", 3, "--inversion-steps", 2)
    assert run("invert", clip, "-o", "clip.safetensors", "--features", *options)[0] == 0
    source = anyv2v.load(weights, device="cpu").load_source("clip.safetensors")
    assert set(source.features.by_step) == {0}


def test_a_plan_is_printed_before_anything_runs(run, clip, weights, no_inversion):
    options = ("--weights", weights, "--size", "64x64", "--fit", "crop")
    options += ("--frames", 3, "--steps", 10)
    status, out, err = run("plan", clip, *options)
    assert (status, err) == (0, "")
    for line in (
        "evaluations: at most 15 to invert, 20 branches to sample",
        "operations: ",
        "features: 5 of 5 steps kept",
        "memory: ",
    ):
        assert line in out
    status, _, err = run("plan", clip, "--offload", "some", *options)
    assert status != 0 and "--offload" in err
    assert os.listdir() == []


@pytest.mark.slow
def test_a_plan_of_other_ways(run, clip, weights, no_inversion):
    options = ("--weights", weights, "--size", "64x64", "--frames", 3, "--steps", 10)
    status, out, _ = run("plan", clip, "--feature-memory", 0, "--method", "ddim", *options)
    assert status == 0 and "at most 451 to invert, 25 branches" in out
    # nothing waits elsewhere on a CPU
    assert run("plan", clip, "--feature-memory", 0, "--offload", "on", *options)[0] == 0
    assert os.listdir() == []


def test_an_inversion_goes_on_where_it_was_killed(run, clip, weights, tmp_path, monkeypatch):
    options = ["--weights", weights, "--size", "64x64", "--frames", "3", "--device", "cpu"]
    args = ["invert", clip, "-o", "clip.safetensors", *options]
    assert run(*args, "--inversion-steps", 40)[0] == 0
    whole = anyv2v.load(weights, device="cpu").load_source("clip.safetensors")
    os.remove("clip.safetensors")
    os.remove("clip.safetensors.json")
    code = (
        "import os, signal, sys; import anyv2v.pipeline.source as s; s.SAVE_EVERY = 0.0\n"
        "from anyv2v.cli.main import main; save = s.Unfinished.save\n"
        "def die(self, state, *rest):\n"
        "    save(self, state, *rest)\n"
        "    if state.steps == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "s.Unfinished.save = die; main(sys.argv[1:])\n"
    )
    args += ["--inversion-steps", "40"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL
    assert os.listdir() == ["clip.safetensors.unfinished"]
    calls, predict = [], anyv2v.Editor.predict

    def counted(self, latents, t, *rest):
        calls.append(t)
        return predict(self, latents, t, *rest)

    monkeypatch.setattr(anyv2v.Editor, "predict", counted)
    assert run(*args, "--resume")[0] == 0
    assert sorted(os.listdir()) == ["clip.safetensors", "clip.safetensors.json"]
    source = anyv2v.load(weights, device="cpu").load_source("clip.safetensors")
    assert source.evaluations == whole.evaluations
    assert min(calls) == 7 * 25 + 1
    for t, x in whole.trajectory.items():
        assert (source.trajectory[t] - x).norm() <= 1e-6 * x.norm()


def test_reconstruct_prints_what_was_lost(run, clip, weights):
    options = ("--weights", weights, "--size", "64x64", "--frames", 3, "--inversion-steps", 4)
    status, out, _ = run("reconstruct", clip, "-o", "again.mp4", "--steps", 4, *options)
    assert status == 0
    evaluations = int(re.search(r"(\d+) evaluations", out)[1])
    assert 4 <= evaluations <= 8 and "PSNR" in out and "s to sample" in out
    assert anyv2v.read_video("again.mp4").frames.shape == (3, 64, 64, 3)


def frames_of(path):
    """The frames of a picture or of an animated one, float64 (n, h, w, 3)."""
    with Image.open(path) as picture:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    return np.stack(frames).astype(float)


def test_demo_writes_everything_it_promises(run):
    status, out, err = run("demo", "-o", "demo", "--quiet")
    assert status == 0
    assert err == ""
    scores = json.loads(Path("demo/scores.json").read_text())
    assert {"edit", "static", "random", "latents_only"} <= set(scores)
    truth, edited = (anyv2v.read_video(f"demo/{n}.mp4") for n in ("truth", "edited"))
    mse = np.mean((truth.frames[1:].astype(float) - edited.frames[1:].astype(float)) ** 2)
    # through two lossy files: near, not equal
    assert abs(10 * np.log10(255**2 / mse) - scores["edit"]["psnr"]) < 1.0
    # the pictures of the model's card are those of this run
    for name in ("sheet.png", "demo.gif"):
        ours, card = (frames_of(folder / name) for folder in (Path("demo"), CARD))
        assert ours.shape == card.shape
        assert np.abs(ours - card).mean() < 0.5
    assert anyv2v.read_video("demo/side-by-side.mp4").frames.shape[2] == 3 * 256
    made = json.loads(Path("demo/edited.mp4.json").read_text())
    assert made["settings"]["command"] == "demo" and made["seed"] == CLEAR
    # what `evaluate` finds in the files is what the demo found before they were compressed
    assert run("evaluate", "demo/edited.mp4", "-o", "judged", "--quiet")[0] == 0
    judged = json.loads(Path("judged/scores.json").read_text())
    judged = {name.split("[")[0]: value for name, value in judged.items()}
    assert judged["psnr_truth"] == pytest.approx(scores["edit"]["psnr"], abs=0.5)
    # an edit of the background leaves nothing alone
    assert "psnr_unchanged" not in judged and scores["edit"]["outside"] is None
    assert judged["ssim_truth"] == pytest.approx(scores["edit"]["ssim"], abs=0.003)
    assert judged["flicker_truth"] == pytest.approx(scores["edit"]["flicker"], rel=0.04)
    assert run("demo", "-o", "demo")[0] == 2
    assert run("demo", "-o", "no/such/demo")[0] == 2


def write_bytes(name, data):
    Path(name).write_bytes(data)
    return name


BAD_VIDEOS = {
    "absent": (lambda clip: "absent.mp4", ("absent.mp4",)),
    "empty": (lambda clip: write_bytes("empty.mp4", b""), ("empty.mp4", "empty")),
    "text": (lambda clip: write_bytes("text.mp4", b"hello\n" * 50), ("text.mp4",)),
    "folder": (lambda clip: ".", ("folder",)),
    "short": (lambda clip: clip, ("16 frames", "99")),
}


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_bad_videos(edit, clip, case):
    make, words = BAD_VIDEOS[case]
    check_refused(edit(make(clip), frames=99 if case == "short" else 3), *words)


def test_a_truncated_video_is_read_as_far_as_it_goes(edit, clip, tmp_path):
    # faststart puts the index first, so the first frames survive a cut
    data = clip.read_bytes()
    write_bytes("cut.mp4", data[: len(data) // 2])
    assert edit("cut.mp4", frames=2)[0] == 0
    os.remove("out.mp4")
    check_refused(edit("cut.mp4", frames=16), "cut.mp4 has", "16 asked for")


def test_a_video_of_one_frame(edit, video):
    anyv2v.write_video("one.mp4", video.frames[:1], fps=8)
    check_refused(edit("one.mp4", frames=1), "1 frame", "at least 2")
    check_refused(edit("one.mp4", frames=2), "1 frame")


@pytest.mark.parametrize("data", [b"", b"no picture", None], ids=["empty", "text", "absent"])
def test_bad_frames(edit, data):
    if data is not None:
        write_bytes("frame.png", data)
    check_refused(edit(frame="frame.png"), "frame.png")


@pytest.mark.parametrize("fit", [None, "crop"])
def test_the_video_is_looked_at_before_the_frame(edit, clip, fit):
    check_refused(edit("gone.mp4", frame="gone.png", fit=fit), "gone.mp4: no such file")
    gone = edit("gone.safetensors", fit=fit, frames=None, inversion_steps=None)
    check_refused(gone, "gone.safetensors: no such file")
    check_refused(edit(clip, frame="gone.png", size="60x64", fit=fit), "60x64")


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(size="60x64"), ("60x64", "divisible by 8", "nearest", "64x64")),
        (dict(size="64x"), ("--size", "64x", "WIDTHxHEIGHT")),
        (dict(size="0"), ("--size", "'0'")),
        (dict(size="0x64"), ("0x64",)),
        (dict(conv=1.5), ("conv: 1.5", "between 0 and 1")),
        (dict(spatial=-0.1), ("spatial: -0.1",)),
        (dict(temporal="nan"), ("temporal", "nan")),
        (dict(steps=0), ("--steps", "'0'")),
        (dict(steps=3, inversion_steps=4), ("timestep 667", "serves runs of 1, 2, 4 steps")),
        (dict(steps="many"), ("--steps", "many")),
        (dict(start=2), ("start: 2", "from 0 to 1")),
        (dict(inversion_steps=1000), ("1000", "999")),
        (dict(steps=50, inversion_steps=20), ("steps", "timestep 981")),
        (dict(frames=0), ("--frames",)),
        (dict(seed=-1), ("--seed",)),
        (dict(random_ratio=2), ("--random-ratio", "2")),
        (dict(fit="bend"), ("--fit", "bend")),
        (dict(method="guess"), ("--method", "guess", "ddim")),
        (dict(dtype="int8"), ("--dtype", "int8")),
        (dict(sample_fps=0), ("--sample-fps", "'0'", "above 0")),
        (dict(start_time=99), ("99",)),
        (dict(guidance="high"), ("--guidance", "high")),
        (dict(device="toaster"), ("toaster",)),
        (dict(device="meta"), ("meta", "neither cpu nor cuda")),
        (dict(weights="nowhere"), ("nowhere",)),
        (dict(prompt=None), ("--prompt",)),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_bad_options(edit, changed, words, no_inversion):
    check_refused(edit(**changed), *words)


def test_unknown_options_and_commands(run, edit):
    check_refused(edit(extra=("--sharpen",)), "--sharpen", "anyv2v edit --help")
    check_refused(run("improve"), "improve")
    check_refused(run(), "COMMAND")


@pytest.mark.parametrize("size", ["80000x80000", "800000x800000"])
def test_what_cannot_fit_is_refused_with_what_would(edit, size):
    status, out, err = edit(size=size, frames=16)
    check_refused((status, out, err), "not enough memory", size, "16 frames", "would fit")
    width, height = map(int, err.split("; ")[1].split(" would")[0].split("x"))
    assert 64 <= width == height < int(size.split("x")[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(edit):
    check_refused(edit(device="cuda"), "cuda", "cpu")


def test_outputs_that_cannot_be_written(edit, clip):
    write_bytes("there.mp4", b"precious")
    status, out, err = edit(output="there.mp4")
    assert status == 2 and "there.mp4" in err and "--force" in err
    assert Path("there.mp4").read_bytes() == b"precious"
    assert edit(output="there.mp4", extra=("--force",))[0] == 0
    assert anyv2v.read_video("there.mp4").frames.shape[0] == 3
    check_refused(edit(output="no/folder/out.mp4"), "no/folder")
    check_refused(edit(output="out.txt"), "out.txt", ".mp4")
    check_refused(edit(output="/proc/out.mp4"), "/proc/out.mp4")


def test_an_input_is_never_overwritten(edit, clip):
    shutil.copy(clip, "in.mp4")
    before = Path("in.mp4").read_bytes()
    status, _, err = edit("in.mp4", output="in.mp4", extra=("--force",))
    assert status == 2 and "never overwritten" in err
    status, _, err = edit("in.mp4", output="in.mp4")
    assert status == 2 and "never overwritten" in err and "--force" not in err
    assert Path("in.mp4").read_bytes() == before


def test_weights_are_never_overwritten(run, clip, weights, tmp_path):
    shutil.copytree(weights, "weights")
    before = Path("weights/unet.safetensors").read_bytes()
    options = ("--weights", "weights", "--size", "64x64", "--frames", 3, "--inversion-steps", 2)
    status, _, err = run("invert", clip, "-o", "weights/unet.safetensors", "--force", *options)
    assert status == 2 and "folder of the weights" in err
    assert Path("weights/unet.safetensors").read_bytes() == before


def test_broken_weights(edit, weights):
    """Every way in which a folder can be wrong is named; the tensor too."""

    def broken(change):
        shutil.rmtree("broken", ignore_errors=True)
        shutil.copytree(weights, "broken")
        change(Path("broken"))
        return edit(weights="broken")

    def cut(folder):
        path = folder / "unet.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    def narrower(folder):
        config = json.loads((folder / "config.json").read_text())
        config["unet"]["widths"] = [16, 32, 48, 64]
        (folder / "config.json").write_text(json.dumps(config))

    def field(folder):
        config = json.loads((folder / "config.json").read_text())
        del config["vae"]["layers"]
        (folder / "config.json").write_text(json.dumps(config))

    check_refused(broken(lambda f: (f / "vae.safetensors").unlink()), "vae.safetensors")
    check_refused(broken(cut), "unet.safetensors")
    check_refused(broken(narrower), "unet.safetensors", "down.3.")
    check_refused(broken(field), "broken/config.json", "'vae'", "layers is missing")
    for section, name, value in (
        ("defaults", "size", 512),
        ("unet", "widths", 5),
        ("unet", "groups", 0),
        ("vae", "groups", 7),
        ("text", "heads", 5),
        ("preprocess", "size", 31),
        ("schedule", "train_steps", 10),
        ("injection", "conv", ["up.7.res.0"]),
    ):

        def changed(folder, section=section, name=name, value=value):
            config = json.loads((folder / "config.json").read_text())
            config[section][name] = value
            (folder / "config.json").write_text(json.dumps(config))

        check_refused(broken(changed), "broken/config.json")
    check_refused(broken(lambda f: (f / "config.json").write_text("{")), "config.json")
    check_refused(broken(lambda f: (f / "tokenizer" / "merges.txt").unlink()), "merges.txt")
    check_refused(edit(weights=weights / "config.json"), "config.json")


def test_a_hugging_face_folder_is_converted_and_otherwise_refused(edit, run, snapshot):
    check_refused(edit(weights=snapshot), "anyv2v convert")
    status, out, err = run("convert", snapshot, "converted", "--dtype", "float16")
    assert (status, err) == (0, "")
    assert edit(weights="converted")[0] == 0
    os.remove("out.mp4")
    check_refused(run("convert", snapshot, "converted"), "converted", "--force")
    check_refused(run("convert", "nowhere", "other"), "nowhere")
    assert not os.path.exists("other")


def test_somebody_who_watches_sees_the_progress(edit, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, _, err = edit(extra=())
    assert status == 0
    assert "invert: 100%" in err and "3/3" in err and "2/2" in err
    assert edit(output="quiet.mp4", extra=("--quiet",))[2] == ""


class Uncapturable:
    def warm_up(self, run):
        return run()

    def capture(self, run):
        raise RuntimeError("CUDA error: it waits\nCompile with `TORCH_USE_CUDA_DSA`.")


def test_why_nothing_is_captured_is_said_in_one_line(edit, monkeypatch):
    @contextmanager
    def captured_forward(forward, device, graphs):
        yield Graphs(forward, device, Uncapturable())

    monkeypatch.setattr("anyv2v.pipeline.stages.captured_forward", captured_forward)
    monkeypatch.setattr("anyv2v.pipeline.cuda_graphs._WARNED", set())
    # pytest's own handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    status, _, err = edit()
    assert status == 0
    assert err.count("\n") == 1 and err.startswith("anyv2v: no CUDA graphs")
    assert err.endswith("CUDA error: it waits\n")


def test_a_command_may_run_in_a_thread(run, edit):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(edit).result()[0] == 0


def test_tracebacks_are_for_those_who_ask(edit):
    status, _, err = edit(size="60x64", extra=("--debug",))
    assert status == 2 and "Traceback" in err


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_nothing(clip, frame, weights, tmp_path, sent):
    args = [clip, "--frame", frame, "--prompt", "x", "--weights", weights, "-o", "out.mp4"]
    args += [
        "--size",
        "128x128",
        "--frames",
        "8",
        "--steps",
        "50",
        "--inversion-steps",
        "500",
        "--fit",
        "crop",
        "-q",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "anyv2v", "edit", *map(str, args)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    # at work: it has used more time than starting takes
    deadline = time.monotonic() + 60
    while sum(os_times(child.pid)) < 6 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(sent)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + sent
    assert err == "anyv2v: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_an_interrupt_that_gets_lost_is_found_at_the_next_step(edit, monkeypatch):
    """Seen once on a busy machine: a run went on to its end after the signal."""
    encode, steps = anyv2v.Editor.encode_frames, []

    def lose(self, *args):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return encode(self, *args)

    predict = anyv2v.Editor.predict
    monkeypatch.setattr(anyv2v.Editor, "encode_frames", lose)
    monkeypatch.setattr(anyv2v.Editor, "predict", lambda *args: steps.append(1) or predict(*args))
    assert edit() == (130, "", "anyv2v: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(steps) <= 2 and os.listdir() == []


def os_times(pid: int) -> tuple[float, float]:
    """Seconds of user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def test_version(run, capfd):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert anyv2v.__version__ in capfd.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """What the editor is asked for: name of the method -> its keyword arguments."""
    calls = {}

    def watched(called, what):
        def call(self, *args, **options):
            calls[called] = options
            if called == "edit_each":
                (calls["request"],) = args[1]
            return what(self, *args, **options)

        return call

    for name in ("invert", "edit_each", "reconstruct"):
        monkeypatch.setattr(anyv2v.Editor, name, watched(name, getattr(anyv2v.Editor, name)))
    return calls


def test_paper_runs_as_the_original_does(edit, asked):
    few = dict(steps=2, inversion_steps=4, fit=None)
    status, out, err = edit(**few, extra=("--paper", "-q"))
    assert status == 0 and "features" not in out
    said = "--steps and --inversion-steps as given, in place of the original's"
    assert err.splitlines()[0] == f"anyv2v: --paper: {said}"
    assert asked["invert"]["method"] == "ddim" and asked["invert"]["recording"] is None
    assert asked["edit_each"]["source_pass"] == "always"
    request = asked["request"]
    assert request.guidance == {"text": 9.0} and request.fit == "stretch"
    assert request.negative_prompt == anyv2v.NEGATIVE_PROMPT
    injection = asked["edit_each"]["injection"]
    assert injection == anyv2v.Injection(0.2, 0.2, 0.5)
    made = json.loads(Path("out.mp4.json").read_text())["settings"]
    assert made["paper"] is True and made["method"] == "ddim" and made["guidance"] == 9.0
    assert (made["conv"], made["spatial"], made["temporal"]) == (0.2, 0.2, 0.5)
    assert made["negative_prompt"] == anyv2v.NEGATIVE_PROMPT and made["fps"] == 8


def test_groups_and_options_of_the_weights(edit, run, clip, no_inversion):
    # as far as the inversion
    assert edit(extra=("--inject", "conv=0.5,temporal=1", "--option", "fps=9", "-q"))[0] == 1
    check_refused(edit(extra=("--inject", "cross=0.5", "-q")), "no group cross; there are conv")
    check_refused(edit(extra=("--option", "speed=3", "-q")), "no such option: speed")
    check_refused(edit(extra=("--guidance", "image=3", "-q")), "no such scale: image")
    check_refused(run("plan", clip, "--inject", "conv=.2", "--conv", ".2"), "exclude each other")


@pytest.mark.slow
def test_what_was_used_is_in_the_sidecar_and_makes_the_same_again(edit, run, written):
    extra = ("--inject", "conv=1", "--option", "fps=9", "--guidance", "text=2", "-q")
    assert edit(extra=extra) == (0, "out.mp4: 3 frames, 64x64, 8 fps\n", "")
    made = json.loads(Path("out.mp4.json").read_text())["settings"]
    assert (made["conv"], made["spatial"], made["temporal"]) == (1.0, 0.2, 0.5)
    assert (made["fps"], made["guidance"], made["steps"]) == (9, 2.0, 2)
    assert made["inject"] is None and made["option"] is None
    status, _, err = run("edit", "--config", "out.mp4.json", "-o", "again.mp4", "-q")
    assert (status, err) == (0, "")
    assert np.array_equal(written["again.mp4"], written["out.mp4"])
    again = json.loads(Path("again.mp4.json").read_text())["settings"]
    assert again == made | {"output": again["output"]}
