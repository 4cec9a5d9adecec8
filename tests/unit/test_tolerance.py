"""The study of the inversion's tolerance: its batches give what the editor does; it resumes."""

import json
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch

import anyv2v
from anyv2v.diffusion.inversion import TOLERANCE, fixed_point
from anyv2v.weights.demo.scores import scores
from bench import tolerance

STEPS = 4


@pytest.fixture(scope="module")
def editor():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield anyv2v.load("demo", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(tolerance, "BEST", replace(tolerance.BEST, steps=STEPS))
    loose, tight = (partial(fixed_point, tolerance=t) for t in (10.0, 1e-3))
    monkeypatch.setattr(tolerance, "SETTINGS", {"loose": loose, "tight": tight})


@pytest.mark.slow
def test_scenes_in_a_batch_are_inverted_and_edited_as_alone(editor, short):
    clips = tolerance.Clips(editor, (1, 4))
    found = tolerance.measure(clips, ["loose", "tight"])
    assert found[0][0]["evaluations"] < found[1][0]["evaluations"]
    for row, asked in zip(found, (10.0, 1e-3), strict=True):
        for i, one in enumerate(row):
            truth, edit = clips.truths[i], clips.edits[i]
            video = anyv2v.Video(truth.source, tolerance.FPS)
            caption = edit.source.caption
            source = editor.invert(video, steps=STEPS, prompt=caption, tolerance=asked)
            again = editor.reconstruct(source, caption, steps=STEPS).latents
            made = editor.edit(
                source,
                truth.frames[0],
                edit.truth.caption,
                negative_prompt="",
                steps=STEPS,
                guidance=tolerance.BEST.guidance,
                injection=tolerance.BEST.injection,
            )
            clean = source.trajectory[0]
            assert one["evaluations"] == source.evaluations
            error = ((again - clean).norm() / clean.norm()).item()
            assert one["error"] == pytest.approx(error, rel=1e-2, abs=1e-5)
            assert one["psnr"] == pytest.approx(scores(made.frames, truth)["psnr"], abs=0.02)


def test_what_was_measured_is_not_measured_again(monkeypatch, tmp_path, editor):
    asked = []

    def measure(clips, settings):
        asked.append((tuple(clips.scenes), tuple(settings)))
        return [[{"evaluations": 1, "error": 0.1}] * len(clips.scenes)] * len(settings)

    monkeypatch.setattr(tolerance, "measure", measure)
    monkeypatch.setattr(tolerance.anyv2v, "load", lambda *args, **options: editor)
    args = Namespace(output=tmp_path, first=0, scenes=6, settings=["linear"])
    tolerance.run(args)
    tolerance.run(args)
    args.settings, args.scenes = ["linear", tolerance.DDIM], 8
    tolerance.run(args)
    first = tuple(range(6))
    assert asked == [
        (first, ("linear",)),
        (first, (tolerance.DDIM,)),
        ((6, 7), (tolerance.DDIM,)),
        ((6, 7), ("linear",)),
    ]
    lines = [json.loads(x) for x in (tmp_path / "tolerance.jsonl").read_text().splitlines()]
    assert len({(x["scene"], x["setting"]) for x in lines}) == len(lines) == 16


def test_what_fails_in_one_inversion_ends_them_all(editor, short, monkeypatch):
    def fails(predict, state, schedule, steps):
        raise RuntimeError("no such luck")
        yield

    with pytest.raises(RuntimeError, match="no such luck"):
        tolerance.invert_together([fails], tolerance.Clips(editor, (1,)), {})


def test_a_summary_compares_the_same_scenes():
    def line(i, error, psnr, px, kind="colour"):
        return {"error": error, "evaluations": 50 + i, "psnr": psnr, "trajectory": px, "kind": kind}

    found = {
        tolerance.DDIM: {0: {"error": 0.02, "evaluations": 491, "kind": "colour"}},
        tolerance.BEFORE: {i: line(i, 1e-4, 20.0 + i, 1.0) for i in range(3)},
        "new": {i: line(i, 1e-3 * (1 + i), 20.5 + i, 1.25) for i in range(3)},
    }
    new = tolerance.summary(found)[2]
    facts = new["facts"]
    assert new["evaluations"] == 51 and facts["most_evaluations"] == 52
    assert facts["of_ddim_error"] == pytest.approx(0.05) and facts["scenes_of_ddim"] == 1
    for end in ("", "_low", "_high"):
        assert facts["difference_db" + end] == pytest.approx(0.5)
        assert facts["difference_px" + end] == pytest.approx(0.25)


def test_the_default_is_the_one_that_the_study_calls_so():
    given = tolerance.SETTINGS[tolerance.DEFAULT].keywords
    assert given == {"tolerance": TOLERANCE}
