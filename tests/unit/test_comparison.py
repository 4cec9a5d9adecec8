"""Comparisons: benchmark folders, what is compared with what, means, intervals, tables."""

import csv
import io
import itertools
import math

import numpy as np
import pytest

from anyv2v.comparison.benchmark import (
    BenchmarkClip,
    BenchmarkEdit,
    FaultyBenchmark,
    read_benchmark,
)
from anyv2v.comparison.cells import Comparison, Layout, edit_tasks, frame_tasks, method_tasks
from anyv2v.comparison.intervals import Mean, bootstrap, wilson
from anyv2v.comparison.methods import (
    METHODS,
    AnyV2V,
    Baseline,
    FrameSource,
    Tool,
    read_frame_sources,
    read_methods,
)
from anyv2v.comparison.results import Findings, Result, as_csv, as_json, markdown, short_table
from anyv2v.errors import InputError
from anyv2v.evaluation.scores import Score


@pytest.fixture
def bench(tmp_path):
    """A benchmark of two clips; the second has all files."""
    write(tmp_path / "cat/clip.mp4")
    write(tmp_path / "cat/edits/dog/prompt.txt", "a dog\nwalks\n")
    write(tmp_path / "cat/edits/dog/frame.jpg")
    for name in ("clip/1.png", "caption.txt", ".DS_Store"):
        write(tmp_path / "man" / name, "a man")
    edit = tmp_path / "man/edits/red"
    for name in ("frame.png", "reference.webp", "mask.png", "truth/1.png"):
        write(edit / name)
    for name in ("prompt.txt", "instruction.txt", "instruction.recolour.txt"):
        write(edit / name, name)
    return tmp_path


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_benchmark_is_read_as_it_is_laid_out(bench):
    cat, man = read_benchmark(bench)
    (dog,), (red,) = cat.edits, man.edits
    assert (cat.name, cat.video, cat.caption) == ("cat", bench / "cat/clip.mp4", "")
    assert (man.video, man.caption) == (bench / "man/clip", "a man")
    assert dog == BenchmarkEdit("cat", "dog", "a dog walks", {}, bench / "cat/edits/dog/frame.jpg")
    folder = bench / "man/edits/red"
    assert (red.frame, red.mask) == (folder / "frame.png", folder / "mask.png")
    assert (red.reference, red.truth) == (folder / "reference.webp", folder / "truth")
    assert red.instruction("recolour") == "instruction.recolour.txt"
    assert red.instruction("palette") == "instruction.txt" and dog.instruction("palette") == ""
    assert [clip.name for clip in read_benchmark(bench, limit=1)] == ["cat"]


FAULTS = {
    "edits/dog/promt.txt": "promt.txt: unknown",
    "edits/dog/frame.png": "has both frame.jpg and frame.png",
    "edits/dog/truth.mp4/1.png": "truth.mp4: unknown",
    "edits/a dog/prompt.txt": "a dog: a name is made of",
    "edits/notes.txt": "notes.txt: edits/ has one folder",
    "clip.mov": "has both clip.mov and clip.mp4",
    "clips/1.png": "clips: unknown",
    "edits/two/frame.png": "two: has no prompt.txt",
    "edits/dog/mask/1.png": "mask: unknown",
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_line(bench, name):
    write(bench / "cat" / name)
    with pytest.raises(FaultyBenchmark) as caught:
        read_benchmark(bench)
    (fault,) = caught.value.faults
    assert fault.startswith(str(bench / "cat")) and FAULTS[name] in fault


def test_all_faults_are_told_at_once(bench):
    (bench / "cat/clip.mp4").unlink()
    (bench / "cat/edits/dog/prompt.txt").write_text(" \n")
    (bench / "man/caption.txt").write_bytes(b"\xff")
    write(bench / "readme.txt")
    (bench / "man/edits/blue").mkdir()
    with pytest.raises(FaultyBenchmark) as caught:
        read_benchmark(bench)
    words = ["prompt.txt: is empty", "cat: has no clip.mp4", "not text in UTF-8"]
    words += ["blue: has no prompt.txt", "readme.txt: a benchmark has one folder"]
    assert len(caught.value.faults) == len(words)
    for each in words:
        assert sum(each in fault for fault in caught.value.faults) == 1, each


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_a_folder_without_clips_is_no_benchmark(tmp_path, make):
    with pytest.raises(FaultyBenchmark, match="no such folder|holds no clip"):
        read_benchmark(make(tmp_path))


# methods and editors


def test_methods_are_told_by_names_options_and_commands():
    text = "soft=--conv 0.5 --resume --option a=1 --option 'b=2 3' --protect=off"
    paper, copy, soft, tool = read_methods(["paper", "copy"], [text, "my=tool {video} {output}"])
    assert paper == AnyV2V("paper", {"paper": True}) and copy == Baseline("copy")
    wanted = {"conv": "0.5", "resume": True, "option": ["a=1", "b=2 3"], "protect": "off"}
    assert soft == AnyV2V("soft", wanted)
    assert tool == Tool("my", "tool {video} {output}")


@pytest.mark.parametrize(
    "names, defined, message",
    [
        (["best"], [], "'best' is not one of ours, paper"),
        (["copy", "copy"], [], "copy: is named twice"),
        ([], [], "at least one method"),
        ([], ["ours=--conv 1"], "is the name of a method already"),
        ([], ["x=tool {video}"], "neither {output} nor"),
        ([], ["x=tool {output} {vidoe}"], "{vidoe} is none of"),
        ([], ["x=--conv 1 2"], "'2' stands where an option is due"),
        ([], ["tool {output}"], "is not NAME="),
        ([], ["a/b=tool {output}"], "is not NAME="),
        ([], ["x='"], "No closing quotation"),
    ],
)
def test_wrong_methods_are_refused(names, defined, message):
    with pytest.raises(InputError, match=message.replace("{", "\\{")):
        read_methods(names, defined)


def test_editors_are_told_by_names_and_options():
    true, colors = read_frame_sources(["true"], ["few=posterise colours=3"])
    assert true == FrameSource("true", "true")
    assert colors == FrameSource("few", "posterise", {"colours": "3"})
    for defined, message in {
        "few=posterise colors=3": "no option 'colors'",
        "few=posterise 3": "'3' is not OPTION=VALUE",
        "few=posterize": "'posterize' is not one of given",
        "ip2p=instruct-pix2pix": "needs --editor-weights",
    }.items():
        with pytest.raises(InputError, match=message):
            read_frame_sources([], [defined])


# cells


def edit(clip, name="e", **files):
    return BenchmarkEdit(clip, name, f"{name} of {clip}", files.pop("instructions", {}), **files)


@pytest.fixture
def comparison(tmp_path):
    """Two clips of which one has a truth, three editors, three methods."""
    clips = [
        BenchmarkClip("a", tmp_path / "a.mp4", "a cat", (edit("a", frame=tmp_path / "f.png"),)),
        BenchmarkClip(
            "b",
            tmp_path / "b.mp4",
            "",
            (edit("b", truth=tmp_path / "t.mp4", instructions={"": "red > blue", "sharp": "x"}),),
        ),
    ]
    editors = read_frame_sources(["given", "recolour"], ["sharp=posterise"])
    return Comparison(clips, editors, read_methods(["ours", "paper", "copy"]))


def test_cells_are_all_pairs_whose_first_frame_can_be_had(comparison):
    found = {(c.edit.clip, c.frame.name, c.method.name) for c in comparison.cells()}
    methods = ("ours", "paper", "copy")
    frames = [("a", "given"), ("a", "sharp"), ("b", "recolour"), ("b", "sharp")]
    assert found == {(*frame, method) for frame in frames for method in methods}
    assert comparison.gaps() == [
        "a/e: has no instruction, which the editor recolour needs",
        "b/e: has no frame, which the editor given needs",
    ]


def test_a_star_has_every_method_and_every_editor_once(comparison):
    star = Comparison(comparison.clips, comparison.frames, comparison.methods, star=True)
    names = [(frame.name, method.name) for frame, method in star.pairs()]
    assert names == [
        *(("given", "ours"), ("given", "paper"), ("given", "copy")),
        *(("recolour", "ours"), ("sharp", "ours")),
    ]


def test_tasks_tell_what_each_method_gets(comparison, tmp_path):
    layout = Layout(tmp_path)
    a, b = edit_tasks(comparison, layout, {"a": {"size": "8x8"}, "b": {}})
    assert a.video == str(tmp_path / "inputs/a/clip") and a.settings == {"size": "8x8"}
    ours, paper, *_ = a.edits
    assert ours.output == "outputs/a/e/given/ours/%05d.png"
    frame = str(tmp_path / "inputs/a/e/given.png")
    assert ours.settings == {"inversion_prompt": "a cat", "frame": frame, "prompt": "e of a"}
    # the paper's inversion has no prompt
    assert paper.settings == {"paper": True, "frame": frame, "prompt": "e of a"}
    assert "inversion_prompt" not in b.edits[0].settings
    frames = {e.output: e.settings for t in frame_tasks(comparison, layout, 3) for e in t.edits}
    assert sorted(frames) == [
        *("inputs/a/e/sharp.png", "inputs/b/e/recolour.png", "inputs/b/e/sharp.png")
    ]
    told = [frames[f"inputs/b/e/{name}.png"]["instruction"] for name in ("recolour", "sharp")]
    assert told == ["red > blue", "x"]
    (copy, _), _ = (task.edits for task in method_tasks(comparison, layout, {"a": 8, "b": 8}, 3))
    assert copy.settings == {"baseline": "copy", "frame": frame}


# intervals


def test_wilson_bounds_solve_their_definition():
    """The bounds are the shares p with |wins / n - p| = z sqrt(p (1 - p) / n)."""
    for wins, votes in ((0, 5), (3, 10), (8, 10), (500, 1000), (7, 7)):
        low, high = wilson(wins, votes)
        for p in {low, high} - {0.0, 1.0}:
            off = abs(wins / votes - p)
            assert math.isclose(off, 1.959964 * math.sqrt(p * (1 - p) / votes), rel_tol=1e-5)
        assert 0 <= low <= wins / votes <= high <= 1
    # Newcombe 1998, table I: 81 of 263
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_resamples_clips_with_all_their_edits():
    """With three clips, all 27 draws can be listed."""
    values, clips = [1.0, 2.0, 4.0, 9.0], ["a", "a", "b", "c"]
    groups = {"a": [1.0, 2.0], "b": [4.0], "c": [9.0]}
    draws = [
        np.mean([v for clip in drawn for v in groups[clip]])
        for drawn in itertools.product(groups, repeat=3)
    ]
    found = bootstrap(values, clips)
    assert (found.mean, found.edits) == (4.0, 4)
    # 1/27 of the draws are at either end, more than a tail of 2.5 %
    assert (found.low, found.high) == (min(draws), max(draws)) == (1.5, 9.0)
    # nine edits of one clip weigh nine times as much: the lower bound is that of three draws of it
    unequal = bootstrap([0.0] * 9 + [10.0] * 4, ["a"] * 9 + list("bcde"))
    assert (unequal.low, unequal.high) == (20 / (3 * 9 + 2), 10.0)
    with_more = bootstrap(np.arange(40.0), [str(i) for i in range(40)])
    wide = np.sqrt((40**2 - 1) / 12 / 40)
    assert with_more.high - with_more.low == pytest.approx(2 * 1.96 * wide, rel=0.1)


def test_one_clip_says_nothing_of_others():
    assert bootstrap([1.0, 3.0], ["a", "a"]) == Mean(2.0, None, None, 2)
    assert bootstrap([], []) is None
    assert Mean(2.0, None, None, 2).text(1) == "2.0"
    assert Mean(-2.0, -3.25, 1.0, 2).text(2, signed=True) == "-2.00 [-3.25, +1.00]"


# results


def findings(comparison, values):
    """values: (clip, editor, method) -> PSNR."""
    cells = {(c.edit.clip, c.frame.name, c.method.name): c for c in comparison.cells()}
    results = [
        Result(
            cells[key],
            [Score("psnr_truth[x]", v, "dB", "higher"), Score("lpips", None, reason="not asked")],
        )
        for key, v in values.items()
    ]
    return Findings(comparison, results)


@pytest.fixture
def found(tmp_path):
    clips = [
        BenchmarkClip(name, tmp_path, "", (edit(name, frame=tmp_path, truth=tmp_path),))
        for name in "abc"
    ]
    methods = [METHODS["ours"], METHODS["copy"]]
    comparison = Comparison(clips, read_frame_sources(["true", "given"]), methods)
    return findings(
        comparison,
        {
            ("a", "true", "ours"): 20.0,
            ("b", "true", "ours"): 30.0,
            ("a", "true", "copy"): 21.0,
            ("b", "true", "copy"): 33.0,
            # without a partner
            ("c", "true", "copy"): 90.0,
            ("b", "given", "ours"): 28.5,
        },
    )


def test_differences_are_of_the_edits_that_both_have(found):
    rows = {(row.editor, row.method): row for row in found.rows()}
    name = "psnr_truth[x]"
    ours, copy = rows["true", "ours"], rows["true", "copy"]
    assert (ours.edits, ours.means[name].mean) == (2, 25.0)
    assert not ours.over_method and not ours.over_editor
    assert (copy.edits, copy.means[name].mean) == (3, 48.0)
    # (1 + 3) / 2, not 48 - 25; between the two clips' own differences
    assert copy.over_method[name] == Mean(2.0, 1.0, 3.0, 2)
    given = rows["given", "ours"]
    assert given.over_editor[name] == Mean(-1.5, None, None, 1) and not given.over_method
    assert rows["given", "copy"].edits == 0 and not rows["given", "copy"].means
    assert "lpips" not in ours.means


def test_tables_and_files_say_the_same(found):
    columns, rows = short_table(found)
    assert columns[3:] == ["psnr_truth, dB ↑", "less ours", "less true"]
    assert rows[0] == ["true", "ours", "2", "25.00 [20.00, 30.00]", "", ""]
    assert rows[1][4] == "+2.00 [+1.00, +3.00]" and rows[2][5] == "-1.50"
    lines = markdown(columns, rows).splitlines()
    assert len(lines) == 2 + len(rows) and len({len(line) for line in lines}) == 1
    facts = as_json(found, {"seed": 0})
    assert facts["rows"][1]["over_method"]["psnr_truth[x]"]["low"] == 1.0
    assert facts["cells"][0]["scores"] == {"psnr_truth[x]": 20.0, "lpips": None}
    table = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["psnr_truth[x]"] for row in table] == [
        "20.0",
        "30.0",
        "21.0",
        "33.0",
        "90.0",
        "28.5",
    ]
    assert table[5] | {"psnr_truth[x]": "", "lpips": ""} == {
        **{"clip": "b", "edit": "e", "editor": "given", "method": "ours"},
        **{"psnr_truth[x]": "", "lpips": ""},
    }
