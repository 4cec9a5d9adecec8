"""Published tables and figures: what they say, and that they are what the results give."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import report
from bench.compare import condense

ROOT = Path(__file__).parents[2]
PAGE = "docs/benchmarks.md"
ABOUT = {
    "device": "processor, x86_64",
    "threads": 2,
    "matrix_tflops": 0.3,
    "copy_gbs": 20.0,
    "torch": "2.13.0",
    "commit": "abc",
    "date": "2026-01-01",
    "command": "python -m bench edit",
}


def timed(case, way, seconds, **more):
    spread = {"p20_s": seconds * 0.9, "p80_s": seconds * 1.1, "median_s": seconds}
    row = {"case": case, "implementation": way, "status": "measured", "peer": False, "ratio": 1.0}
    return row | spread | more


def edits():
    near, far = "edit, demo weights, 32x32, 8 frames", "edit, published size, 512x512, 16 frames"
    ways = (report.ORIGINAL, report.FIRST, report.NEXT)
    rows = [
        timed(near, way, t, evaluations=n)
        for way, t, n in zip(ways, (40, 10, 5), (650, 178, 100), strict=True)
    ]
    plan = {"peak_mb": 2e3, "facts": {"weights_gb": 5.0, "features_gb": 1.0}}
    rows.append({"case": far, "implementation": ways[0], "status": "counted", "tflop": 13608.0})
    rows += [
        {"case": far, "implementation": way, "status": "predicted", "tflop": t, **plan}
        for way, t in zip(ways[1:], (4065.0, 1984.0), strict=True)
    ]
    return {"about": ABOUT, "rows": rows}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    marked = "before\n\n<!-- bench:glance -->\nold\n<!-- /bench -->\n\nafter\n"
    for name in report.DOCUMENTS:
        (tmp_path / name).write_text(marked)
    write(tmp_path, {"edit": edits()})
    return tmp_path


def write(root, subjects, name="cpu-small"):
    (root / "bench" / "results" / f"{name}.json").write_text(json.dumps(subjects))


def test_this_clones_documents_are_what_its_results_give():
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "report.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_fails_in_one_line_and_writes_nothing(root, capsys):
    before = (root / PAGE).read_text()
    assert report.main(["--check"], root) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert PAGE in line and "glance.svg" in line and "bench/report.py" in line
    assert (root / PAGE).read_text() == before
    assert report.main([], root) == 0 and report.main(["--check"], root) == 0


@pytest.mark.parametrize("what", [PAGE, "bench/results/glance.svg", "result"])
def test_check_sees_every_change(root, what):
    report.main([], root)
    if what == "result":
        changed = edits()
        changed["rows"][0]["median_s"] = 41
        write(root, {"edit": changed})
    else:
        path = root / what
        path.write_text(path.read_text().replace("40", "39"))
    assert report.main(["--check"], root) == 1


def test_a_table_says_what_was_measured_and_what_was_not(root):
    report.main([], root)
    text = (root / PAGE).read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    times = next(line for line in text.splitlines() if line.startswith("| time |"))
    assert (
        times
        == "| time | 40.0 s (36.0 to 44.0 s) | 10.0 s (9.00 to 11.0 s) | 5.00 s (4.50 to 5.50 s) |"
    )
    parts = [line for line in text.splitlines() if line.startswith("| of the original's |")]
    assert parts == [
        "| of the original's | 1.00 | 0.250 | 0.125 |",
        "| of the original's | 1.00 | 0.299 predicted | 0.146 predicted |",
    ]
    assert "| time on a GPU | not measured on a GPU | not" in text
    assert "7.00 GB predicted" in text
    for circumstance in ("`python -m bench edit`", "processor", "2 threads", "abc", "2026-01-01"):
        assert circumstance in text


def test_the_headline_is_short_and_says_where_the_rest_is(root):
    (root / "README.md").write_text("<!-- bench:headline -->\n<!-- /bench -->")
    (root / PAGE).write_text("<!-- bench:headline -->\n<!-- /bench -->")
    report.main([], root)
    lines = (root / "README.md").read_text().splitlines()
    assert "| time on a CPU, demo weights | 40.0 s | 10.0 s | 5.00 s |" in lines
    assert not [line for line in lines if line.startswith("| memory")]
    assert (
        lines[-3].startswith("processor; published size") and "](docs/benchmarks.md)" in lines[-3]
    )
    # a table links from where its document is
    assert "](../docs/benchmarks.md)" in (root / PAGE).read_text()
    on_gpu = edits() | {"rows": [timed("edit", w, 2.0, peak_mb=9e3) for w in (report.NEXT,)]}
    write(root, {"edit": on_gpu}, "cuda-full")
    report.main([], root)
    text = (root / "README.md").read_text()
    assert "| time on a GPU, published size |  |  | 2.00 s |" in text


def test_gpu_results_take_the_place_of_their_absence(root):
    on_gpu = edits()
    on_gpu["rows"] = on_gpu["rows"][:3]
    write(root, {"edit": on_gpu}, "cuda-full")
    report.main([], root)
    line = next(x for x in (root / PAGE).read_text().splitlines() if "time on a GPU" in x)
    assert "not measured" not in line and "40.0 s" in line


def test_the_facts_of_a_rental_are_gpu_results(root):
    about = {"torch": "2.11.0", "triton": "3.6.0", "commit": "abc", "date": "2026-01-01"}
    about |= {"part": 1, "card": "a card", "headline": True, "since_start_s": 1.0, "status": "ok"}

    def fact(step, case, implementation="", **columns):
        return {"step": step, "case": case, "implementation": implementation, **about, **columns}

    def times(seconds):
        return {"median_s": seconds, "p20_s": seconds, "p80_s": seconds, "rounds": 1}

    lines = [
        fact("S0", "rates", copy_gbs=3000.0, matrix_tflops=700.0),
        fact("S4", "edit", report.FIRST, **times(10.0), evaluations=160),
        fact("S4", "edit", report.NEXT, **times(5.0), peak_gb=7.5),
        fact("S5", "edit", report.ORIGINAL, **times(40.0), extrapolated="from 20 steps"),
        fact("S3", "profile of a forward", "convolution", ms=12.5),
        fact("S4", "step", "whole edits", ended_s=99.0),
    ]
    path = root / "bench" / "results" / "rental.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    marked = "<!-- bench:{} -->\n<!-- /bench -->\n"
    (root / PAGE).write_text(marked.format("glance"))
    (root / "bench" / "README.md").write_text(marked.format("all-edit") + marked.format("rental"))
    report.main([], root)
    glance = (root / PAGE).read_text()
    assert "| time on a GPU | 40.0 s extrapolated | 10.0 s | 5.00 s |" in glance
    assert "| of the original's | 1.00 | 0.250 | 0.125 |" in glance
    assert "a card" in glance and "extrapolated from 20 steps" in glance
    told = (root / "bench" / "README.md").read_text()
    assert "7.50 GB" in told and "ms 12.5" in told and "99" not in told
    assert report.main(["--check"], root) == 0


def test_the_full_set_goes_before_the_small_one(root):
    fuller = edits()
    fuller["rows"][0]["median_s"] = 50
    write(root, {"edit": fuller}, "cpu-full")
    report.main([], root)
    assert "50.0 s" in (root / PAGE).read_text()


def test_a_marker_that_nothing_fills_is_refused(root):
    (root / PAGE).write_text("<!-- bench:nothing -->\n<!-- /bench -->")
    with pytest.raises(SystemExit, match="bench:nothing"):
        report.main([], root)


def scaling():
    def facts(size, frames, edits):
        return {"size": size, "frames": frames, "edits": edits, "steps": 10}

    points = [(32, 8, 1), (64, 8, 1), (32, 16, 1), (32, 8, 2)]
    rows = []
    for point in points:
        plan = {"predicted_tflop": 2.0, "predicted_mb": 30.0}
        more = {"tflop": 2.0, "peak_mb": 25.0, "facts": facts(*point) | plan}
        rows.append(timed(f"demo weights, {point}", "anyv2v", 1.0, **more))
    for point in [(512, 16, 1), (768, 16, 1)]:
        row = {"case": f"published size, {point}", "implementation": "anyv2v"}
        row |= {"status": "predicted", "tflop": 4000.0, "peak_mb": 3e3, "facts": facts(*point)}
        rows.append(row)
    return {"about": ABOUT, "rows": rows}


def test_what_is_predicted_is_drawn_hollow(root):
    write(root, {"edit": edits(), "scaling": scaling()})
    report.main([], root)
    svg = ElementTree.parse(root / "bench" / "results" / "scaling.svg")
    dots = [e.attrib for e in svg.iter() if e.tag.endswith("circle")]
    hollow = [d for d in dots if d["fill"] == "none"]
    # 2 quantities; on each axis the points that differ in it alone; one mark of each kind is a key
    measured = 2 * (2 + 2 + 2)
    predicted = 2 * (1 + 2 + 1)
    assert len(dots) - len(hollow) == measured + 1
    assert len(hollow) == measured + predicted + 2
    words = " ".join(e.text for e in svg.iter() if e.tag.endswith("text"))
    assert "predicted by anyv2v plan" in words and "not measured on a GPU" in words


def test_numbers_are_cut_where_they_mean_nothing():
    for x, text in ((13607.6, "13,608"), (0.0325, "0.0325"), (3.14159, "3.14"), (None, "")):
        assert report.digits(x, 5 if x and x > 1e4 else 3) == text
    assert report.duration(0.00123) == "1.23 ms" and report.duration(3e-5) == "30.0 µs"


def test_every_column_of_a_table_is_explained():
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", text.split("## Edits")[0], re.MULTILINE)
    assert {"case", "implementation", *report.COLUMNS} <= set(explained)


def test_the_table_of_comparisons_has_means_and_paired_differences(root):
    """From the scores that `anyv2v compare` writes to the line of the table."""
    psnr, first = "psnr_truth[x]", "psnr_first_frame[x]"

    def mean(value, half, edits):
        bounds = (None, None) if half is None else (value - half, value + half)
        return dict(zip(("mean", "low", "high", "edits"), (value, *bounds, edits), strict=True))

    ours = {"editor": "true", "method": "ours", "edits": 10}
    ours |= {"means": {psnr: mean(26.34, 1.5, 10), first: mean(100.0, 0.0, 10)}}
    other = {"editor": "palette", "method": "ours", "edits": 1}
    other |= {"means": {psnr: mean(24.0, None, 1)}, "over_editor": {psnr: mean(-2.5, 0.25, 1)}}
    rows = [{"over_method": {}, "over_editor": {}} | row for row in (ours, other)]
    rows = condense({"rows": rows})
    write(root, {"edit": edits(), "compare": {"about": ABOUT, "rows": rows}})
    text = report.comparison(report.Results(root / "bench" / "results"))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:4]]
    assert lines[0][:5] == ["true", "ours", "10", "100.0 [100.0, 100.0]", "26.3 [24.8, 27.8]"]
    assert lines[1] == ["palette", "ours", "1", "", "24.0", "", "", "", "-2.50 [-2.75, -2.25]"]
    assert "dB over `ours` | dB over `true`" in text.splitlines()[0]
    empty = root / "nothing"
    empty.mkdir()
    assert report.comparison(report.Results(empty)) == "No results yet."


def test_the_tables_of_the_flow_model_have_each_row_of_its_studies_once(root):
    def row(name, kind="all", **scores):
        return {"name": name, "kind": kind, "scenes": 24, **scores}

    names = {"none": 0.0, "map 0 0.2 all": 9.0, "map 0 0.6 all": 0.5, "map 1 0.6 all": -0.25}
    names |= {"map 0-1 0.2 all": 1.0, "map 0-1 0.6 all": 2.0, "hidden 0 0.6 rest": 0.125}
    names |= {"hidden 1 0.6 rest": 0.0}
    sites = [row(n, gain=[g, g - 0.25, g + 0.25]) for n, g in names.items()]
    sites.append(row("map 0 0.6 all", "shape", gain=[7.0, 7.0, 7.0]))
    level = {
        "drawn": [2.0, 2.0, 2.0],
        "evaluations": [57.0, 56.0, 58.0],
        "norm": [1.01, 1.0, 1.02],
        "gain": [0.0, 0.0, 0.0],
    }
    levels = [row("0.17", psnr=[25.0, 24.0, 26.0], **level), row("euler", **level)]
    studies = {"sites": sites, "levels": levels}
    path = root / "bench" / "results" / "flow-edits.json"
    path.write_text(json.dumps({k: {"about": ABOUT, "rows": v} for k, v in studies.items()}))
    results = report.Results(root / "bench" / "results")
    blocks, ranges = (make(results) for make in (report.flow_blocks, report.flow_ranges))
    assert "| map | all | +0.50 ±0.25 | -0.25 ±0.25 |" in blocks
    assert "| hidden | rest | +0.12 ±0.25 | +0.00 ±0.25 |" in blocks
    assert "| map | all | 0-1 | +1.00 ±0.25 | +2.00 ±0.25 |" in ranges
    assert "9.0" not in blocks + ranges and "7.0" not in blocks + ranges
    assert "24 scenes · `python -m bench edit` · processor" in blocks
    told = report.flow_levels(results)
    assert (
        "| 0.17 | 2 | 57 | 1.01 [1.00, 1.02] |" in told and "| 25.0 [24.0, 26.0] | +0.00 |" in told
    )
    # the residual of Euler's method is not known, and an interval of no width is not told
    assert "| euler | 2 | 57 | 1.01 [1.00, 1.02] |  |" in told
    assert report.flow_settings("settings")(results) == "No results yet."
    assert report.flow_held_out(results) == "No results yet."


def test_the_tables_of_the_flow_model_tell_kinds_of_edits_apart(root):
    def row(name, kind, gain, **scores):
        return {"name": name, "kind": kind, "scenes": 6, "psnr": [25.0, 24.0, 26.0], **scores} | (
            {} if gain is None else {"gain": [gain, gain - 1, gain + 1]}
        )

    rows = [row("none", "all", 0.0), row("map", "all", 1.5, trajectory=[0.5, 0.25, 0.75])]
    rows += [row("none", "shape", 0.0), row("map", "shape", -2.25, trajectory=[9.0, 8.0, 10.0])]
    held = [row("edit", "all", 0.0), row("reconstruction", "all", None)]
    held += [row("static", "colour+background", -8.5), row("edit", "colour+background", 0.0)]
    studies = {"settings": rows, "held-out": held}
    path = root / "bench" / "results" / "flow-edits.json"
    path.write_text(json.dumps({k: {"about": ABOUT, "rows": v} for k, v in studies.items()}))
    results = report.Results(root / "bench" / "results")
    lines = report.flow_settings("settings")(results).splitlines()
    assert lines[0].startswith("|  | edit, dB | over `none`, dB | colour | texture | shape |")
    gained = "| map | 25.0 [24.0, 26.0] | +1.50 [+0.50, +2.50] |  |  | -2.2 |  |  |  |"
    assert lines[3].startswith(gained) and "0.50 [0.25, 0.75]" in lines[3]
    lines = report.flow_held_out(results).splitlines()
    assert lines[2].startswith("| all | edit | 6 | 25.0 [24.0, 26.0] |")
    assert lines[3].startswith("|  | reconstruction | 6 | 25.0 [24.0, 26.0] |  |")
    assert lines[4].startswith("| colour and background | static | 6 |") and "-8.50" in lines[4]
    assert lines[5].startswith("|  | edit | 6 |")
