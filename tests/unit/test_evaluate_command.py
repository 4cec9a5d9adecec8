"""`anyv2v evaluate`: what it finds by itself, what it is told, and what it writes."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.evaluation import clip_model, network
from anyv2v.evaluation.case import Case
from anyv2v.evaluation.scores import Score, scores
from anyv2v.media.image import center_crop
from anyv2v.media.placement import Placement
from anyv2v.media.video import pyav

SMALL = ("--size", "32x32", "--frames", "3", "--steps", "2", "--inversion-steps", "2", "-q")
SMALL += ("--sample-fps", "4", "--feature-memory", "0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a clip, an edited frame, and edits as files and as pictures."""
    folder = tmp_path_factory.mktemp("made")
    pyav()
    rng = np.random.default_rng(0)
    cells = rng.integers(100, 156, (1, 4, 4, 3), np.uint8)
    frames = np.kron(np.repeat(cells, 6, axis=0), np.ones((1, 16, 16, 1), np.uint8))
    for i in range(6):
        frames[i, 20:44, 8 + 3 * i : 32 + 3 * i] = (220, 20, 20)
    edited = frames[0].copy()
    edited[20:44, 8:32] = (20, 200, 20)
    here = Path.cwd()
    os.chdir(folder)
    try:
        anyv2v.write_video("clip.mp4", frames, fps=8)
        Image.fromarray(edited).save("a.png")
        os.makedirs("batch/far/frames")
        line, each = ("edit", "clip.mp4", *SMALL), ("--frame", "a.png", "--prompt", "<b>a</b>")
        outputs = (*each, "-o", "batch/one.mp4", *each, "-o", "batch/far/frames/%03d.png")
        assert main([*line, *outputs]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capfd):
    """run(*args) -> (status, stdout, stderr), in a copy of the folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    # what the sidecars name is where it was
    for sidecar in Path().rglob("*.json"):
        sidecar.write_text(sidecar.read_text().replace(str(made), os.getcwd()))

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def judged(folder="o"):
    return json.loads(Path(folder, "scores.json").read_text())


def first():
    """The edited frame at the size of the edits."""
    return {0: center_crop(anyv2v.read_image("a.png"), (32, 32))}


def by_hand(output, source="clip.mp4", size=(32, 32), **fields):
    """The scores of a clip as Python computes them of what is read at a size."""
    edited = anyv2v.read_video(output, size).frames
    before = anyv2v.read_video(source, size, len(edited), 4).frames
    rows = scores(Case(edited, before, **fields))
    return {s.name: s.value for s in rows if s.value is not None}


def test_what_is_not_given_comes_from_the_sidecar(run):
    status, out, err = run("evaluate", "batch/one.mp4", "-o", "o", "-q")
    assert (status, err) == (0, "")
    expected = by_hand("batch/one.mp4", references=first())
    assert judged() == expected and len(expected) == 7
    # the table shows them too, and why there are no others
    for name, value in expected.items():
        assert re.search(rf"^{re.escape(name)} +{value:.4f}", out, re.MULTILINE)
    assert len(re.findall(r"^psnr_truth.* - no truth is known$", out, re.MULTILINE)) == 1
    assert out.splitlines()[-1] == "o: scores.json, scores.csv, index.html"


def test_what_is_given_counts_without_a_sidecar(run):
    os.remove("batch/one.mp4.json")
    options = ("--source", "clip.mp4", "--frame", "a.png")
    assert run("evaluate", "batch/one.mp4", *options, "-o", "o", "-q")[0] == 0
    assert judged() == by_hand("batch/one.mp4", references=first())
    assert run("evaluate", "batch/one.mp4", "-o", "p", "-q")[0] == 0
    assert judged("p") == {}


def test_truth_mask_and_size_are_as_given(run):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24] = 255
    Image.fromarray(mask).save("m.png")
    frames = anyv2v.read_video("clip.mp4", frames=3).frames
    anyv2v.write_video("truth.mp4", frames, 4)
    options = ("--truth", "truth.mp4", "--mask", "m.png", "--size", "16x16")
    assert run("evaluate", "batch/one.mp4", *options, "-o", "o", "-q")[0] == 0
    small = (mask[::2, ::2] / 255).astype(np.float32)
    truth = anyv2v.read_video("truth.mp4", (16, 16)).frames
    expected = by_hand("batch/one.mp4", size=(16, 16), truth=truth, mask=small)
    assert judged() == expected and any("given mask" in name for name in expected)


@pytest.mark.slow
def test_a_mask_of_the_edit_is_that_of_the_scores(run):
    """The sidecar's --protect names it."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save("m.png")
    edit = ("edit", "clip.mp4", "--frame", "a.png", "--prompt", "x", "--protect", "m.png")
    assert run(*edit, "-o", "p.mp4", *SMALL)[0] == 0
    assert run("evaluate", "p.mp4", "-o", "o", "-q")[0] == 0
    assert judged() == by_hand("p.mp4", mask=(mask / 255).astype(np.float32))


def test_an_edited_frame_lies_where_the_edit_was_placed(run):
    """The middle of a wide clip is edited at 16x16, and put back into the whole of it."""
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(60, 200, (8, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    picture = wide.copy()
    picture[8:24, 24:40] = 255 - picture[8:24, 24:40]
    frame = center_crop(picture, (16, 16))
    Image.fromarray(frame).save("small.png")
    placed = Placement((64, 32), (16, 16), "crop").restore(frame, wide)
    os.mkdir("wide")
    os.mkdir("out")
    anyv2v.write_video("wide/%03d.png", np.stack([wide] * 3), fps=8)
    anyv2v.write_video("out/%03d.png", np.stack([placed] * 3), fps=8)
    made = json.loads(Path("batch/one.mp4.json").read_text())
    told = {"video": os.path.abspath("wide/%03d.png"), "frame": os.path.abspath("small.png")}
    told |= {"sample_fps": "source", "size": "16x16"}
    made["settings"] |= {**told, "out_size": "source", "output": "out/%03d.png"}
    Path("out/edit.json").write_text(json.dumps(made))
    assert run("evaluate", "out", "-o", "o", "-q")[0] == 0
    (edited, source) = (np.stack([x] * 3) for x in (placed, wide))
    expected = scores(Case(edited, source, references={0: placed}))
    assert judged() == {s.name: s.value for s in expected if s.value is not None}
    assert "background_share[auto mask, frames 1 on]" in judged()


def test_a_folder_has_each_of_its_clips_and_the_means(run):
    status, out, err = run("evaluate", "batch", "-o", "o", "-q")
    assert (status, err) == (0, "")
    facts, names = judged(), ["far/frames/%03d.png", "one.mp4"]
    assert list(facts["outputs"]) == names
    for name in names:
        assert facts["outputs"][name] == by_hand(f"batch/{name}", references=first())
    for metric, mean in facts["means"].items():
        values = [scored[metric] for scored in facts["outputs"].values()]
        assert mean == {"mean": pytest.approx(np.mean(values)), "n": 2}
        assert re.search(rf"^{re.escape(metric)} +{mean['mean']:.4f}  n=2$", out, re.MULTILINE)
    # the pictures of one clip are that clip
    assert run("evaluate", "batch/far/frames", "-o", "p", "-q")[0] == 0
    assert judged("p") == facts["outputs"]["far/frames/%03d.png"]
    assert run("evaluate", "batch/far/frames/%03d.png", "-o", "q", "-q")[0] == 0
    assert judged("q") == judged("p")


def test_a_clip_that_cannot_be_read_does_not_stop_the_others(run):
    Path("batch/one.mp4").write_bytes(b"no video")
    status, out, err = run("evaluate", "batch", "-o", "o", "-q")
    assert status == 2 and "one.mp4" in err and len(err.splitlines()) == 1
    assert list(judged()["outputs"]) == ["far/frames/%03d.png"] and "means of 1 clip" in out


def test_what_a_sidecar_names_and_is_gone_is_said(run):
    os.remove("clip.mp4")
    os.remove("a.png")
    status, out, err = run("evaluate", "batch/one.mp4", "-q")
    assert status == 0 and "no source is known" in out
    assert [re.search(r"the (\w+) that", line)[1] for line in err.splitlines()] == [
        "source",
        "frame",
    ]
    # what an option names must be there
    status, _, err = run("evaluate", "batch/one.mp4", "--source", "clip.mp4", "-q")
    assert status == 2 and "--source clip.mp4" in err


@pytest.mark.parametrize("option", ["--source", "--truth", "--frame", "--prompt", "--mask"])
def test_what_belongs_to_one_clip_is_refused_for_a_folder(run, option):
    status, _, err = run("evaluate", "batch", option, "a.png")
    assert status == 2 and f"{option} belongs to one clip; batch holds 2" in err


def test_outputs_are_not_overwritten(run):
    assert run("evaluate", "batch/one.mp4", "-o", "o", "-q")[0] == 0
    before = Path("o/index.html").read_bytes()
    os.remove("o/scores.json")
    status, _, err = run("evaluate", "batch/one.mp4", "-o", "o", "-q")
    assert status == 2 and "already exists" in err and not Path("o/scores.json").exists()
    Path("o/index.html").write_text("mine")
    assert run("evaluate", "batch/one.mp4", "-o", "o", "-q", "--force")[0] == 0
    assert Path("o/index.html").read_bytes() == before and len(os.listdir("o")) == 3
    assert run("evaluate", "batch/one.mp4", "-o", "no/such")[0] == 2


def test_the_page_shows_the_clips_and_escapes_names(run):
    # bytes that are no text
    odd = os.fsdecode(b"\xff<i>")
    for suffix in (".mp4", ".mp4.json"):
        os.rename(f"batch/one{suffix}", f"batch/{odd}{suffix}")
    assert run("evaluate", "batch", "-o", "o", "-q")[0] == 0
    assert f"{odd}.mp4" in judged()["outputs"]
    assert run("evaluate", f"batch/{odd}.mp4", "-o", "o", "-q", "--force")[0] == 0
    page = Path("o/index.html").read_text(encoding="utf-8")
    assert "<i>" not in page and "<b>a" not in page
    assert "\\udcff&lt;i&gt;.mp4" in page and "prompt: &lt;b&gt;a&lt;/b&gt;" in page
    labels = re.findall(r"<figcaption>([^<]*)<", page)
    assert labels == ["source", "edit", "may change (white): auto mask"]


@pytest.mark.slow
def test_the_network_is_that_of_the_sidecar(run, monkeypatch):
    asked = []

    def trip(editor, video, run, of="source", track=None):
        asked.append((len(video), video.frames.shape[2], run, of))
        return [Score(f"psnr_round_trip_{of}[x]", 1.0)]

    monkeypatch.setattr(network, "round_trip", trip)
    options = ("--option", "fps=5", "--inversion-prompt", "y", "--tolerance", "0.5")
    edit = ("edit", "clip.mp4", "--frame", "a.png", "--prompt", "x", *SMALL)
    assert run(*edit, *options, "-o", "batch/two.mp4")[0] == 0
    # enlarged to 64x64; the network works at the size of the edit
    assert run(*edit, "--out-size", "source", "-o", "batch/v.mp4")[0] == 0
    assert run("evaluate", "batch", "--round-trip", "-o", "o", "-q")[0] == 0
    common = {"method": "fixed-point", "inversion_steps": 2, "steps": 2, "frames": 8}
    one = network.Run(**common, tolerance=3e-3, options={"fps": 8})
    two = network.Run(**common, prompt="y", tolerance=0.5, options={"fps": 5})
    # the edits of one clip by the same inversion have one round trip
    assert asked == [(3, 32, one, "source"), (3, 32, two, "source")]
    assert all("psnr_round_trip_source[x]" in s for s in judged()["outputs"].values())


@pytest.mark.slow
def test_round_trip_and_checks(run):
    status, out, err = run("evaluate", "batch/one.mp4", "--round-trip", "--checks", "-o", "o", "-q")
    assert (status, err) == (0, "")
    found = judged()
    again = run("reconstruct", "clip.mp4", *SMALL[:-2])[1]
    psnr = found["psnr_round_trip_source[fixed-point 2, 2 steps back, 3 frames]"]
    assert psnr == pytest.approx(float(re.search(r"PSNR ([\d.]+)", again)[1]), abs=0.006)
    names = {name.split("[")[0] for name in found}
    checks = {"psnr_round_trip_frame", "feature_match_edit", "distance_source", "distance_edit"}
    assert checks <= names
    assert Path("o/index.html").read_text().count("<svg") == 2


class Fake:
    """A CLIP that sees a picture as its mean color, and a text as its length."""

    name, text = "fake", True

    def encode_images(self, frames):
        colors = torch.as_tensor(np.asarray(frames, np.float32)).mean((1, 2))
        return colors / colors.norm(dim=1, keepdim=True)

    def encode_text(self, texts):
        vectors = torch.tensor([[float(len(text)), 1.0, 0.0] for text in texts])
        return vectors / vectors.norm(dim=1, keepdim=True)


def test_a_clip_sees_frames_prompt_and_first_frame(run, monkeypatch):
    loaded = []
    monkeypatch.setattr(clip_model, "load", lambda *given: loaded.append(given) or Fake())
    options = ("--clip", "vit", "--device", "cpu", "-o", "o", "-q")
    assert run("evaluate", "batch/one.mp4", *options)[0] == 0
    assert loaded == [("vit", torch.device("cpu"), torch.float32)]
    edited = anyv2v.read_video("batch/one.mp4").frames.astype(np.float64).mean((1, 2))
    frame = first()[0].astype(np.float64).mean((0, 1))

    def cosine(a, b):
        return (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    found, text = judged(), np.array([len("<b>a</b>"), 1.0, 0])
    assert found["clip_text[fake]"] == pytest.approx(np.mean([cosine(x, text) for x in edited]))
    frames = np.mean([cosine(x, frame) for x in edited])
    assert found["clip_image_frame[fake]"] == pytest.approx(frames)
    pairs = np.mean([cosine(a, b) for a, b in zip(edited, edited[1:], strict=False)])
    assert found["clip_image_consecutive[fake]"] == pytest.approx(pairs)
    os.remove("batch/one.mp4.json")
    status, out, _ = run("evaluate", "batch/one.mp4", "--clip", "vit", "-q")
    assert re.search(r"clip_text\[fake\] +- no prompt is known\n", out)
    assert re.search(r"clip_image_frame\[fake\] +- no edited first frame is known\n", out)


def test_options_that_change_nothing_are_told(run):
    options = ("--weights", "demo", "--dtype", "float32", "--force")
    err = run("evaluate", "batch/one.mp4", *options, "-q")[2]
    said = [re.search(r"--(\w+) has no effect", line)[1] for line in err.splitlines()]
    assert said == ["dtype", "weights", "force"]


def test_a_folder_without_clips_is_refused(run):
    os.mkdir("empty")
    status, _, err = run("evaluate", "empty")
    assert status == 2 and len(err.splitlines()) == 1 and "empty" in err


@pytest.mark.parametrize(
    "shape, fps, told",
    [
        ((4, 32, 32, 3), 8, "truth.mp4: has 4 frames, the output has 3"),
        ((3, 32, 64, 3), 4, "is 64x32, the output 32x32; a truth of the same proportions"),
        ((3, 32, 32, 3), 8, "truth.mp4: has 8 fps, the output has 4"),
    ],
)
def test_a_truth_is_that_of_the_output_frame_by_frame(run, shape, fps, told):
    anyv2v.write_video("truth.mp4", np.zeros(shape, np.uint8), fps)
    status, _, err = run("evaluate", "batch/one.mp4", "--truth", "truth.mp4", "-q")
    assert status == 2 and told in err and len(err.splitlines()) == 1


def test_a_source_that_is_too_short_is_told(run):
    anyv2v.write_video("short.mp4", np.zeros((2, 64, 64, 3), np.uint8), 4)
    status, _, err = run("evaluate", "batch/one.mp4", "--source", "short.mp4", "-q")
    assert status == 2 and err == "anyv2v: --source short.mp4: has 2 frames, the output has 3\n"


def test_a_clip_whose_sidecar_is_damaged_is_told(run):
    Path("batch/one.mp4.json").write_text("{")
    status, out, err = run("evaluate", "batch", "-q")
    assert status == 0 and "means of 1 clips" in out
    assert "batch/one.mp4: is left out, because one.mp4.json is no sidecar" in err
