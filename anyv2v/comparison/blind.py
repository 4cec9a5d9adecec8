"""A blind comparison of pairs for people: a page that shows A and B, a key apart, and the count.

The folder `blind/` is for the raters: a page that works from a file:// address without a network,
and its clips, whose order and sides are shuffled by a seed and whose names and files say nothing of
where they come from. `key.json` stays with the one who asks. A rater downloads the answers from the
page, as JSON or CSV.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyv2v.comparison.blind_page import page
from anyv2v.comparison.cells import Cell, Comparison
from anyv2v.comparison.intervals import wilson
from anyv2v.errors import InputError
from anyv2v.media.video import write_video
from anyv2v.runtime.atomic_files import atomic_path

FOLDER, PAGE, CLIPS, KEY = "blind", "index.html", "clips", "key.json"
"""Names, in the folder of the comparison, of what the raters get, and of the key."""
QUESTIONS = {
    "aligned": "Which follows the description better?",
    "preferred": "Which do you prefer as a whole?",
}
"""What is asked of each pair, as in the study of the AnyV2V paper: name -> question."""
A, B, EQUAL = "A", "B", "equal"
"""The answers."""
SHOWN = 256
"""The least length in pixels of a shorter side: pixels of smaller clips are repeated."""
LARGEST = 2**24
"""The most bytes of a file of answers."""


@dataclass(frozen=True)
class Trial:
    """A pair of clips that are shown together."""

    number: int
    """Place on the page, from 1."""
    clip: str
    """Name of the clip."""
    edit: str
    """Name of the edit."""
    editor: str
    """Name of the editor of the first frame."""
    a: str
    """The method that is shown as A."""
    b: str
    """The method that is shown as B."""


@dataclass(frozen=True)
class Pair:
    """Two cells of one edit and first frame: of the base method, and of another."""

    base: Cell
    other: Cell


@dataclass(frozen=True)
class Count:
    """What the raters answered to a question about two methods."""

    question: str
    """A key of `QUESTIONS`."""
    method: str
    """The method whose wins are counted."""
    over: str
    """The method that it is compared with."""
    wins: int
    """Answers for `method`."""
    losses: int
    """Answers for `over`."""
    equal: int
    """Answers that both are equal, which do not count in the share."""

    @property
    def share(self) -> tuple[float | None, float, float]:
        """The share of wins, None without a decided answer, and its Wilson interval of 95 %."""
        decided = self.wins + self.losses
        return (self.wins / decided if decided else None), *wilson(self.wins, decided)


def pairs_of(
    comparison: Comparison, methods: Sequence[str], done: Callable[[Cell], bool]
) -> list[Pair]:
    """Returns the pairs of the base method with each of `methods`, of first frames both have.

    Pairs of which a cell is not done are left out.
    """
    base, found = comparison.methods[0], []
    cells = [cell for cell in comparison.cells() if done(cell)]
    place = {(c.edit.clip, c.edit.name, c.frame.name, c.method.name): c for c in cells}
    for (clip, edit, frame, method), cell in place.items():
        mine = place.get((clip, edit, frame, base.name))
        if method in methods and method != base.name and mine is not None:
            found.append(Pair(mine, cell))
    return found


def write_blind(
    folder: Path,
    pairs: Sequence[Pair],
    frames: Callable[[Cell | str], np.ndarray],
    rate: Callable[[str], float],
    seed: int,
) -> list[Trial]:
    """Writes the page, its clips and the key to the folder of a comparison; returns the trials.

    frames: returns the frames of a cell, or of the clip of a name, uint8 RGB (f, h, w, 3). rate:
    returns the frames per second of the clip of a name. seed: what shuffles. Raises InputError if
    there is no pair.
    """
    if not pairs:
        raise InputError("--blind: there is no pair of clips to show: name methods that were made")
    draw, shuffled = random.Random(seed), list(pairs)
    draw.shuffle(shuffled)
    (folder / FOLDER / CLIPS).mkdir(parents=True, exist_ok=True)
    trials, shown = [], []
    for number, pair in enumerate(shuffled, 1):
        sides = [pair.base, pair.other]
        draw.shuffle(sides)
        edit = pair.base.edit
        names = [side.method.name for side in sides]
        trials.append(Trial(number, edit.clip, edit.name, pair.base.frame.name, *names))
        files = {}
        # no comment in the files: it would say how a clip was made
        for name, clip in (("source", edit.clip), ("a", sides[0]), ("b", sides[1])):
            files[name] = f"{CLIPS}/{number:04}-{name}.mp4"
            write_video(folder / FOLDER / files[name], _enlarged(frames(clip)), rate(edit.clip))
        shown.append({"trial": number, "prompt": edit.prompt, **files})
    key = {"page": _identity(trials, seed), "seed": seed, "base": pairs[0].base.method.name}
    key["trials"] = [asdict(trial) for trial in trials]
    _write(folder / KEY, json.dumps(key, indent=1) + "\n")
    _write(folder / FOLDER / PAGE, page(key["page"], QUESTIONS, shown))
    return trials


def count_answers(key: Path, answers: Sequence[Path]) -> list[Count]:
    """Counts the answers of raters by the key of their page; one row per question and method.

    answers: files that the page made, JSON or CSV, one for each rater. Raises InputError for a file
    that cannot be read, that is of another page, or that answers a trial twice.
    """
    try:
        known = json.loads(key.read_text(encoding="utf-8"))
        page_id, base = known["page"], known["base"]
        trials = {trial.number: trial for trial in (Trial(**each) for each in known["trials"])}
    except OSError as error:
        raise InputError(f"{key}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key}: is no key that anyv2v compare --blind wrote") from error
    votes = [vote for path in answers for vote in _votes(path, page_id, trials)]
    others = sorted({method for t in trials.values() for method in (t.a, t.b)} - {base})
    return [_count(question, base, other, votes) for question in QUESTIONS for other in others]


def _count(
    question: str, method: str, over: str, votes: Sequence[tuple[Trial, Mapping[str, str]]]
) -> Count:
    """Counts one question about two methods."""
    found = {method: 0, over: 0, EQUAL: 0}
    for trial, answers in votes:
        if {trial.a, trial.b} == {method, over} and question in answers:
            found[{A: trial.a, B: trial.b}.get(answers[question], EQUAL)] += 1
    return Count(question, method, over, found[method], found[over], found[EQUAL])


def _votes(
    path: Path, page_id: str, trials: Mapping[int, Trial]
) -> Iterator[tuple[Trial, Mapping[str, str]]]:
    """Yields each trial that a file answers, with question -> answer."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: is no file of answers: it is larger than {LARGEST} bytes")
        found = _parsed(path.read_text(encoding="utf-8-sig"))
        rows = [(int(row["trial"]), row) for row in found["answers"]]
        page = str(found["page"])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no file of answers that the page wrote") from error
    if page != page_id:
        raise InputError(f"{path}: is of page {page[:20]!r}, the key of page {page_id!r}")
    seen = set()
    for number, row in rows:
        if number in seen or number not in trials:
            what = "answers it twice" if number in seen else "the page has no such trial"
            raise InputError(f"{path}: trial {number}: {what}")
        seen.add(number)
        answers = {name: row[name] for name in QUESTIONS if row.get(name)}
        if wrong := [x for x in answers.values() if x not in (A, B, EQUAL)]:
            raise InputError(f"{path}: trial {number}: {wrong[0]!r} is not {A}, {B} or {EQUAL}")
        yield trials[number], answers


def _parsed(text: str) -> dict[str, Any]:
    """A file of answers: JSON, or CSV whose every line names the page."""
    if text.lstrip().startswith("{"):
        return json.loads(text)
    rows = list(csv.DictReader(io.StringIO(text)))
    (page_id,) = {row["page"] for row in rows}
    return {"page": page_id, "answers": rows}


def _identity(trials: Sequence[Trial], seed: int) -> str:
    """What tells one page from others, and says nothing of what is on it."""
    text = json.dumps([seed, [asdict(trial) for trial in trials]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _enlarged(frames: np.ndarray) -> np.ndarray:
    times = max(1, -(-SHOWN // min(frames.shape[1:3])))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
