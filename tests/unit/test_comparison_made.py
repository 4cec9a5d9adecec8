"""What a comparison makes itself: inputs, first frames, baselines, other tools; and its scores."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anyv2v.batch.ledger import Ledger
from anyv2v.batch.run import Outcome, Worker
from anyv2v.comparison.benchmark import BenchmarkClip, BenchmarkEdit
from anyv2v.comparison.cells import Comparison, Layout, frame_tasks, method_tasks
from anyv2v.comparison.doing import Others
from anyv2v.comparison.inputs import prepare
from anyv2v.comparison.judging import FIRST_FRAME, judge
from anyv2v.comparison.methods import read_frame_sources, read_methods
from anyv2v.errors import InputError
from anyv2v.media.video import read_video, write_video

SIZE = (16, 12)
"""Width and height of the edits; the clip on disk is twice as large and wider."""


@pytest.fixture
def made(tmp_path):
    """make(methods, defined, editors) -> comparison, layout, and a function that does it.

    The benchmark has one clip of 3 frames, 48x24, whose edit inverts all levels.
    """
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 24, 48, 3), dtype=np.uint8)
    bench = tmp_path / "bench"
    for folder, clip in ((bench / "clip", frames), (bench / "truth", 255 - frames)):
        folder.mkdir(parents=True)
        write_video(folder / "%05d.png", clip, 8)
    frame, mask = bench / "frame.png", bench / "mask.png"
    Image.fromarray(255 - frames[0]).save(frame)
    left = np.zeros((24, 48), np.uint8)
    left[:, :24] = 255
    Image.fromarray(left).save(mask)
    text = {"": "invert {output}; 'all'"}
    edit = BenchmarkEdit("c", "e", "x", text, frame, frame, mask, bench / "truth")
    clips = [BenchmarkClip("c", bench / "clip", "", (edit,))]

    def make(methods=(), defined=(), editors=("given", "true"), edit=edit):
        one = [replace(clips[0], edits=(edit,))]
        sources = read_frame_sources(editors)
        comparison = Comparison(one, sources, read_methods(methods, defined))
        layout = Layout(tmp_path / "out")
        ledger = Ledger(layout.folder)
        ledger.open()
        reading = {"size": SIZE, "frames": 3, "fps": None, "start_time": 0.0, "fit": "crop"}
        shared = prepare(comparison, layout, lambda path: reading)
        worker = Worker(Others(layout.folder, str, timeout=20), ledger)
        tasks = frame_tasks(comparison, layout, 0) + method_tasks(comparison, layout, {"c": 8}, 0)
        events = [event for task in tasks for event in worker.do(task)]
        outcomes = {e.output: e for e in events if isinstance(e, Outcome)}
        return comparison, layout, outcomes, shared

    return make


def clip_of(layout, comparison, method, editor="given"):
    (cell,) = (c for c in comparison.cells() if (c.frame.name, c.method.name) == (editor, method))
    return read_video(layout.output(cell)).frames


def test_all_methods_get_the_clip_as_it_is_edited(made):
    comparison, layout, _, shared = made(["static", "source"])
    assert shared == {"c": {"size": "16x12", "frames": 3, "sample_fps": 8.0}}
    edit = comparison.clips[0].edits[0]
    clip, truth = (read_video(x).frames for x in (layout.clip("c"), layout.truth(edit)))
    assert clip.shape == (3, 12, 16, 3)
    # both are the middle 32 columns, by a box filter that rounds along each axis
    large = read_video(comparison.clips[0].video).frames[:, :, 8:40]
    box = large.reshape(3, 12, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(clip - box).max() <= 1 and np.abs(truth - (255 - box)).max() <= 1
    frames = {
        name: np.asarray(Image.open(layout.folder / f"inputs/c/e/{name}.png"))
        for name in ("given", "true", "mask")
    }
    assert np.array_equal(frames["given"], truth[0]) and np.array_equal(frames["true"], truth[0])
    assert frames["mask"][:, :8].min() == 255 and frames["mask"][:, 8:].max() == 0
    for method, wanted in (("static", np.repeat(truth[:1], 3, 0)), ("source", clip)):
        assert np.array_equal(clip_of(layout, comparison, method), wanted)


def test_what_is_done_is_not_done_again_until_an_input_changes(made, tmp_path):
    *_, first, _ = made(["static"])
    assert {outcome.status for outcome in first.values()} == {"done"}
    picture = tmp_path / "out/outputs/c/e/given/static/00001.png"
    before = picture.stat().st_mtime_ns
    *_, second, _ = made(["static"])
    assert {outcome.status for outcome in second.values()} == {"skipped"}
    assert picture.stat().st_mtime_ns == before
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(tmp_path / "bench/frame.png")
    *_, third, _ = made(["static"])
    status = {output.split("/")[3]: outcome.status for output, outcome in third.items()}
    assert status == {"given": "failed", "true": "skipped"}
    assert "--force" in third["outputs/c/e/given/static/%05d.png"].text
    write_video(tmp_path / "bench/clip/%05d.png", np.zeros((3, 24, 48, 3), np.uint8), 8)
    *_, fourth, _ = made(["static"])
    assert {outcome.status for outcome in fourth.values()} == {"failed"}


def test_an_output_without_its_file_of_facts_is_not_done(made, tmp_path):
    made(["source"])
    beside = tmp_path / "out/outputs/c/e/true/source/edit.json"
    assert json.loads(beside.read_text())["settings"]["baseline"] == "source"
    beside.unlink()
    *_, again, _ = made(["source"])
    assert again["outputs/c/e/true/source/%05d.png"].status == "failed"


def test_editors_make_first_frames_within_the_mask(made):
    _, layout, outcomes, _ = made(["source"], editors=["posterise"])
    assert outcomes["inputs/c/e/posterise.png"].status == "done"
    frame = np.asarray(Image.open(layout.folder / "inputs/c/e/posterise.png"))
    clip = read_video(layout.clip("c")).frames
    assert np.array_equal(frame[:, 8:], clip[0, :, 8:])
    assert not np.array_equal(frame[:, :8], clip[0, :, :8])


def test_tools_get_files_and_texts_and_their_clip_is_taken(made, tmp_path):
    told = tmp_path / "told"
    script = f'cp -r "$1"/. "$2"; printf "%s\\n" "$@" > {told}'
    words = "{frames} {output_frames} {frame} {mask} {instruction} {prompt} {seed} {fps}"
    tool = f"tool=sh -c {shlex.quote(script)} sh {words}"
    comparison, layout, outcomes, _ = made(defined=[tool], editors=["given"])
    (outcome,) = outcomes.values()
    assert outcome.status == "done", outcome.text
    source = read_video(layout.clip("c")).frames
    assert np.array_equal(clip_of(layout, comparison, "tool"), source)
    frames, _, frame, mask, *texts = told.read_text().splitlines()
    folder = layout.folder / "inputs/c"
    assert [frames, frame, mask] == [
        str(folder / name) for name in ("clip", "e/given.png", "e/mask.png")
    ]
    # no shell reads the instruction, and nothing in it is filled in
    assert texts == ["invert {output}; 'all'", "x", "0", "8"]


def test_tools_may_read_and_write_videos(made):
    pytest.importorskip("av")
    comparison, layout, outcomes, _ = made(defined=["tool=cp {video} {output}"], editors=["given"])
    (outcome,) = outcomes.values()
    assert outcome.status == "done", outcome.text
    # through H.264
    off = clip_of(layout, comparison, "tool").astype(float) - read_video(layout.clip("c")).frames
    assert 0 < np.abs(off).mean() < 30


@pytest.mark.parametrize(
    "command, message",
    [
        ("no-such-tool {output}", "the tool no-such-tool cannot run"),
        ("sh -c 'echo why; exit 3' {output}", "the tool sh failed with status 3: why"),
        ("true {output}", "ended well but wrote neither {output}"),
        ("cp {frame} {output_frames}", "wrote 1 frames of 16x12; the clip has 3 of 16x12"),
        ("sh -c 'cp -r {frames}/. {output_frames}; cp {frame} {output}'", "wrote both {output}"),
    ],
)
def test_tools_that_fail_are_told_in_one_line(made, command, message):
    *_, outcomes, _ = made(defined=[f"tool={command}"], editors=["given"])
    (outcome,) = outcomes.values()
    assert outcome.status == "failed" and message in outcome.text
    assert "\n" not in outcome.text


def test_a_tool_that_wants_a_mask_needs_one(made):
    given = made(["static"])[0].clips[0].edits[0]
    *_, outcomes, _ = made(
        defined=["tool=tool {mask} {output}"], editors=["given"], edit=replace(given, mask=None)
    )
    assert "has no mask.png" in outcomes["outputs/c/e/given/tool/%05d.png"].text


def test_a_picture_of_other_proportions_is_refused(made, tmp_path):
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "bench/frame.png")
    with pytest.raises(InputError, match="frame.png is 24x24, the clip is 48x24"):
        made(["static"])


def test_scores_are_against_the_truth_if_there_is_one(made):
    comparison, layout, _, _ = made(["source", "static"], editors=["given", "posterise"])
    results = judge(comparison, layout, lambda _: True, None)
    found = {(r.cell.frame.name, r.cell.method.name): r.values for r in results}
    edit = comparison.clips[0].edits[0]
    folders = layout.truth(edit), layout.clip("c")
    truth, clip = (read_video(folder).frames.astype(float) for folder in folders)

    def psnr(frames, wanted):
        return 10 * np.log10(255**2 / np.mean((frames - wanted) ** 2))

    posterised = np.asarray(Image.open(layout.folder / "inputs/c/e/posterise.png"))
    for editor, frame in (("given", truth[0]), ("posterise", posterised)):
        for method, frames in (("source", clip), ("static", np.stack([frame] * 3))):
            values = found[editor, method]
            value = next(v for k, v in values.items() if k.startswith("psnr_truth"))
            assert value == pytest.approx(psnr(frames[1:], truth[1:]))
            # the given frame is the true one
            first = 100.0 if editor == "given" else psnr(posterised, truth[0])
            assert values[FIRST_FRAME] == pytest.approx(first)
            assert not any("background" in name for name in values)


def test_scores_without_a_truth_are_of_the_background(made):
    given = made(["source"], editors=["given"])[0].clips[0].edits[0]
    comparison, layout, _, _ = made(["source"], editors=["given"], edit=replace(given, truth=None))

    def further(frames, prompt, frame):
        assert prompt == "x" and frames.shape == (3, 12, 16, 3)
        assert np.array_equal(frame, np.asarray(Image.open(layout.folder / "inputs/c/e/given.png")))
        return {"clip_text[B/32]": 0.25, "other": float("nan")}

    (result,) = judge(comparison, layout, lambda _: True, further)
    assert not any("truth" in name for name in result.values)
    psnr = next(v for k, v in result.values.items() if k.startswith("psnr_background"))
    # the mask says that the right half may not change, and the source does not
    assert psnr == 100.0
    assert result.values["clip_text[B/32]"] == 0.25 and "other" not in result.values
    assert not list(judge(comparison, layout, lambda _: False, None))
