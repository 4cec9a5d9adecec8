"""The blind page: what it shows and what it does not tell, the key, and the count of answers."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from anyv2v.comparison import blind
from anyv2v.comparison.benchmark import BenchmarkClip, BenchmarkEdit
from anyv2v.comparison.blind_page import page
from anyv2v.comparison.cells import Comparison
from anyv2v.comparison.methods import read_frame_sources, read_methods
from anyv2v.errors import InputError
from anyv2v.media.video import read_video

LEVELS = {"ours": 60, "paper": 120, "copy": 180, "clip": 240}
"""The gray level by which the clips of each method are told."""


@pytest.fixture
def comparison(tmp_path):
    clips = [
        BenchmarkClip(
            name, tmp_path, "", (BenchmarkEdit(name, "e", f"</script> {name}", {}, tmp_path),)
        )
        for name in ("ant", "bee", "cow", "dog")
    ]
    methods = read_methods(["ours", "paper", "copy"])
    return Comparison(clips, read_frame_sources(["given"]), methods)


@pytest.fixture
def pairs(comparison):
    return blind.pairs_of(comparison, ["paper", "copy"], lambda cell: True)


@pytest.fixture
def written(pairs, tmp_path, monkeypatch):
    """write(seed) -> trials, page, key; clips are not encoded but noted: file -> gray level."""
    noted = {}

    def note(path, frames, fps):
        noted[path] = int(frames[0, 0, 0, 0])
        assert fps == 8.0 and frames.shape == (2, 256, 512, 3)

    monkeypatch.setattr(blind, "write_video", note)

    def write(seed=0):
        noted.clear()
        trials = blind.write_blind(tmp_path, pairs, frames_of, lambda clip: 8.0, seed)
        text = (tmp_path / "blind" / "index.html").read_text()
        return trials, text, json.loads((tmp_path / "key.json").read_text()), dict(noted)

    return write


def frames_of(what):
    name = "clip" if isinstance(what, str) else what.method.name
    return np.full((2, 4, 8, 3), LEVELS[name], np.uint8)


def data_of(text):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(data)


def test_each_method_is_paired_with_the_base_on_every_edit(comparison, pairs):
    assert len(pairs) == 8 and all(pair.base.method.name == "ours" for pair in pairs)
    assert Counter(pair.other.method.name for pair in pairs) == {"paper": 4, "copy": 4}
    some = blind.pairs_of(comparison, ["copy"], lambda cell: cell.edit.clip != "ant")
    assert sorted(pair.base.edit.clip for pair in some) == ["bee", "cow", "dog"]
    not_base = blind.pairs_of(comparison, ["copy"], lambda cell: cell.method.name != "ours")
    assert not_base == []


def test_the_key_tells_what_each_file_shows(written, tmp_path):
    trials, text, key, noted = written()
    assert [trial.number for trial in trials] == list(range(1, 9))
    assert key["trials"] == [vars(trial) for trial in trials] and key["base"] == "ours"
    data = data_of(text)
    assert data["page"] == key["page"]
    for trial, shown in zip(trials, data["trials"], strict=True):
        assert shown["prompt"] == f"</script> {trial.clip}"
        for side, method in (("a", trial.a), ("b", trial.b), ("source", "clip")):
            assert noted[tmp_path / "blind" / shown[side]] == LEVELS[method]


def test_the_page_tells_nothing_and_loads_nothing(written, tmp_path):
    _, text, key, noted = written()
    assert "</script> ant" not in text
    outside = re.sub(r'"prompt": "[^"]*"', "", text)
    for word in ("ours", "paper", "copy", "given", "ant", "bee", "key.json", "http:", "https:"):
        assert not re.search(rf"\b{re.escape(word)}\b", outside), word
    assert all(re.fullmatch(r"\d{4}-(a|b|source)\.mp4", path.name) for path in noted)
    assert not (tmp_path / "blind" / "key.json").exists()
    assert "default-src 'none'" in text


def test_a_seed_shuffles_order_and_sides(written):
    pages = [written(seed)[0] for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]
    orders = [[trial.clip for trial in trials] for trials in pages]
    assert orders[0] != sorted(orders[0]) and orders[0] != orders[2]
    sides = Counter(trial.a == "ours" for seed in range(10) for trial in written(seed)[0])
    # 80 fair coins: four standard deviations
    assert abs(sides[True] - 40) < 18


def test_clips_are_written_without_a_word_of_their_making(pairs, tmp_path):
    av = pytest.importorskip("av")
    (trial,) = blind.write_blind(tmp_path, pairs[:1], frames_of, lambda clip: 8.0, 0)
    for side in ("a", "b"):
        path = tmp_path / "blind" / "clips" / f"0001-{side}.mp4"
        frames = read_video(path).frames
        assert frames.shape == (2, 256, 512, 3)
        assert abs(frames.mean() - LEVELS[getattr(trial, side)]) < 3
        with av.open(str(path)) as container:
            assert "comment" not in container.metadata


def test_a_page_of_nothing_is_not_written(tmp_path):
    with pytest.raises(InputError, match="no pair"):
        blind.write_blind(tmp_path, [], frames_of, lambda clip: 8.0, 0)


# answers


def answers(trials, page_id, choose):
    """A file of answers as the page makes it; choose(trial) -> a method or None."""
    rows = []
    for trial in trials:
        side = {trial.a: "A", trial.b: "B"}.get(choose(trial), "equal")
        rows.append({"trial": trial.number, "aligned": side, "preferred": "equal", "seconds": 1.5})
    return {"page": page_id, "rater": "x", "answers": rows}


def test_answers_are_counted_by_the_key(written, tmp_path):
    """A rater who always prefers the paper's but finds our clip of ant better than a copy."""
    trials, _, key, _ = written(3)

    def choose(trial):
        if "paper" in (trial.a, trial.b):
            return "paper"
        return "ours" if trial.clip == "ant" else "copy" if trial.clip == "bee" else None

    first, second = tmp_path / "1.json", tmp_path / "2.csv"
    made = answers(trials, key["page"], choose)
    first.write_text(json.dumps(made))
    table = io.StringIO()
    names = ["page", "rater", "trial", "aligned", "preferred", "seconds"]
    writer = csv.DictWriter(table, names, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({"page": key["page"], "rater": "y", **row} for row in made["answers"])
    second.write_text(table.getvalue())
    one, both = (
        {(c.question, c.over): c for c in blind.count_answers(tmp_path / "key.json", files)}
        for files in ([first], [first, second])
    )
    paper, copy = one["aligned", "paper"], one["aligned", "copy"]
    assert (paper.method, paper.wins, paper.losses, paper.equal) == ("ours", 0, 4, 0)
    assert (copy.wins, copy.losses, copy.equal) == (1, 1, 2)
    assert paper.share == pytest.approx((0.0, 0.0, 1.959964**2 / (4 + 1.959964**2)))
    assert copy.share[0] == 0.5
    ties = one["preferred", "copy"]
    assert (ties.equal, ties.share) == (4, (None, 0.0, 1.0))
    assert both["aligned", "paper"].losses == 8


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a | {"page": "0" * 12}, "is of page '000000000000'"),
        (lambda a: a | {"answers": a["answers"] + a["answers"][:1]}, "answers it twice"),
        (lambda a: a | {"answers": [{"trial": 99, "aligned": "A"}]}, "no such trial"),
        (lambda a: a | {"answers": [{"trial": 1, "aligned": "C"}]}, "'C' is not A, B or equal"),
        (lambda a: {"answers": a["answers"]}, "is no file of answers"),
        (lambda a: a | {"answers": [{"aligned": "A"}]}, "is no file of answers"),
        (lambda a: [], "is no file of answers"),
    ],
)
def test_wrong_answers_are_refused(written, tmp_path, change, message):
    trials, _, key, _ = written()
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(change(answers(trials, key["page"], lambda trial: "ours"))))
    with pytest.raises(InputError, match=message):
        blind.count_answers(tmp_path / "key.json", [path])
    with pytest.raises(InputError, match="No such file"):
        blind.count_answers(tmp_path / "none.json", [path])
    with pytest.raises(InputError, match="is no key"):
        blind.count_answers(path, [path])


# the script of the page

RATE = """<script>
for (const number of [0, 1]) {
  if (number) get("next").click();
  for (const [name, value] of [["aligned", "B"], ["preferred", number ? "equal" : "A"]]) {
    const [input] = document.querySelectorAll(`input[name=${name}][value=${value}]`);
    input.click();
  }
}
get("rater").value = 'a "b", c';
get("prompt").textContent = JSON.stringify([asJson(), asCsv(), get("next").disabled,
  get("left").textContent, get("a").getAttribute("src")]);
</script></body>"""


@pytest.mark.slow
def test_a_browser_collects_the_answers(tmp_path):
    """The page in Chromium, clicked by a script of the test."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    files = {name: f"clips/1-{name}.mp4" for name in ("a", "b", "source")}
    trials = [{"trial": n, "prompt": "</script>", **files} for n in (1, 2)]
    path = tmp_path / "index.html"
    path.write_text(page("abc", blind.QUESTIONS, trials).replace("</body>", RATE))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'u'}"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60
    )
    (found,) = re.findall(r'<p id="prompt">(.*?)</p>', done.stdout, re.DOTALL)
    as_json, as_csv, ended, left, source = json.loads(html.unescape(found))
    wanted = [("1", "B", "A"), ("2", "B", "equal")]
    made = json.loads(as_json)
    assert (made["page"], made["rater"]) == ("abc", 'a "b", c')
    rows = [(str(r["trial"]), r["aligned"], r["preferred"]) for r in made["answers"]]
    assert rows == wanted
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert [(r["trial"], r["aligned"], r["preferred"]) for r in rows] == wanted
    assert {(r["page"], r["rater"]) for r in rows} == {("abc", 'a "b", c')}
    assert ended and left.startswith("All pairs") and source == files["a"]
