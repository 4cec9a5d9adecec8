"""`anyv2v compare` as a whole, with the demo weights and few steps."""

import json

import numpy as np
import pytest

from anyv2v.cli.main import main
from anyv2v.media.video import read_video
from bench.compare import write_benchmark

QUICK = ["--method", "quick=--steps 2 --guide off", "--method", "rough=--steps 1 --protect off"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two rendered scenes: an edit of color and one of texture."""
    folder = tmp_path_factory.mktemp("bench")
    write_benchmark(folder, 2)
    return folder


@pytest.fixture
def compare(capsys, monkeypatch, tmp_path, bench):
    """compare(*words) -> (status, stdout, stderr) of anyv2v compare BENCH -o out."""
    monkeypatch.chdir(tmp_path)

    def run(*words, bench=bench):
        status = main(["compare", str(bench), "-o", "out", *words])
        return status, *capsys.readouterr()

    return run


def made(folder):
    """Output -> when its first picture was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("out/outputs/**/00001.png")}


@pytest.mark.slow
def test_a_comparison_is_made_once_and_told(compare, tmp_path):
    words = ["--editors", "true,recolour", "--methods", "copy,static", *QUICK, "--seed", "3"]
    status, out, err = compare(*words, "--limit", "1", "--blind", "quick")
    assert status == 0, err
    before = made(tmp_path)
    assert len(before) == 8
    # the second run goes on where the first ended
    status, out, err = compare(*words, "--blind", "quick")
    assert status == 0, err
    assert "01-texture/texture: has no instruction, which the editor recolour needs" in err
    after = made(tmp_path)
    assert len(after) == 12 and before.items() <= after.items()
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    rows = {(row["editor"], row["method"]): row for row in scores["rows"]}
    assert [row["edits"] for row in rows.values()] == [2] * 4 + [1] * 4
    name = next(n for n in scores["metrics"] if n.startswith("psnr_truth"))
    _check_against_the_files(scores["cells"], name, tmp_path / "out")
    over = [c["scores"][name] for c in scores["cells"] if c["editor"] == "true"]
    # for each clip: copy, static, quick, rough
    gains = np.subtract(over[2::4], over[0::4])
    assert rows["true", "quick"]["over_method"][name]["mean"] == pytest.approx(gains.mean())
    assert scores["settings"]["seed"] == 3 and scores["weights"]
    table = (tmp_path / "out/table.md").read_text()
    assert table in out and table.count("\n") == 10
    key = json.loads((tmp_path / "out/key.json").read_text())
    assert [{t["a"], t["b"]} for t in key["trials"]] == [{"copy", "quick"}] * 3
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<section>") == 3 and "true: rough" in page
    answers = {"page": key["page"], "answers": []}
    for trial in key["trials"]:
        side = "A" if trial["a"] == "quick" else "B"
        answers["answers"].append({"trial": trial["number"], "preferred": side})
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    status, out, err = compare("--answers", "answers.json")
    (line,) = [line for line in out.splitlines() if "preferred" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert status == 0 and cells[1:6] == ["copy", "quick", "0", "3", "0"]


def _check_against_the_files(cells, name, folder):
    """The PSNR of each cell is that of the pictures that were written."""
    for cell in cells:
        where = (cell["clip"], cell["edit"], cell["editor"], cell["method"])
        clip = read_video(folder.joinpath("outputs", *where)).frames
        truth = read_video(folder.joinpath("inputs", *where[:2], "truth")).frames
        error = np.mean((clip[1:].astype(float) - truth[1:]) ** 2)
        assert cell["scores"][name] == pytest.approx(10 * np.log10(255**2 / error))


@pytest.mark.slow
def test_what_fails_stops_nothing(compare, tmp_path):
    tool = ["--method", "tool=false {output}", "--method", "quick=--steps 1"]
    editor = ["--editor", "bad=command command='false {output}'", "--editors", "true"]
    status, _, err = compare("--limit", "1", "--methods", "static", *tool, *editor)
    assert status == 1
    assert "bad.png: the editor command false failed" in err
    assert "tool/%05d.png: the tool false failed with status 1" in err
    outputs = [path.split("/")[-3:-1] for path in made(tmp_path)]
    assert sorted(outputs) == [["true", "quick"], ["true", "static"]]
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert len(scores["cells"]) == 2 and len(scores["notes"]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--methods", "best"], "--methods: 'best' is not one of ours"),
        (["--editors", "best"], "--editors: 'best' is not one of given"),
        (["--method", "x=--size 8"], "--method x: --size is the same for all methods"),
        (["--method", "x=--colour 8"], "there is no option 'colour'"),
        (["--method", "x=--conv 2"], "conv"),
        (["--methods", "ours,copy", "--blind", "ours"], "--blind: 'ours' is not one of copy"),
        (["--editors", "given"], "has no frame, which the editor given needs; nor has any other"),
        (["--clip", "none"], "--clip none: there is no such folder"),
        (["--answers", "none.json"], "key.json: No such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(compare, tmp_path, words, message):
    words = words if "--editors" in words else ["--editors", "true", *words]
    status, out, err = compare(*words)
    assert (status, out) == (2, "") and message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_faults_of_a_benchmark_are_a_line_each(compare, tmp_path):
    (tmp_path / "bad/clip/edits/x").mkdir(parents=True)
    status, out, err = compare(bench=tmp_path / "bad")
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2 and all(line.startswith("anyv2v: ") for line in lines)
    assert "x: has no prompt.txt" in lines[0] and "clip: has no clip.mp4" in lines[1]
