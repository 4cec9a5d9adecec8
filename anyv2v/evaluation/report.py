"""Scores as a table for a terminal, as JSON, as CSV, and as a page with the clips."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyv2v.evaluation.scores import Score, means
from anyv2v.evaluation.sheet import Section, Shown, Table, sheet

COLUMNS = ("output", "metric", "value", "unit", "better", "reason")
"""The columns of the CSV, which has a row for each metric of each output."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What was found of one output."""

    scores: Sequence[Score]
    """Its scores, in the order of the table."""
    clips: Sequence[Shown] = ()
    """The clips that the page shows side by side."""
    plots: Sequence[str] = ()
    """Pictures for the page, each an `<svg>` element."""
    notes: Sequence[str] = ()
    """Lines of text for the page, such as the prompt."""


def as_text(scores: Sequence[Score]) -> str:
    """Returns the scores as a table, a line each: value and unit, or "-" and the reason."""
    lines = [(score.name, *_cells(score)) for score in scores]
    wide = [max(len(line[i]) for line in lines) for i in range(2)] if lines else [0, 0]
    rows = [f"{a:{wide[0]}}  {b:>{wide[1]}} {c}".rstrip() for a, b, c in lines]
    return "\n".join(rows)


def means_as_text(judged: Sequence[Judged]) -> str:
    """Returns the means over several outputs as a table, each with the number of outputs."""
    found = means([each.scores for each in judged])
    wide = max(map(len, found), default=0)
    return "\n".join(f"{name:{wide}}  {x:>9.4f}  n={n}" for name, (x, n) in found.items())


def as_json(judged: Mapping[str, Judged], whole: bool) -> str:
    """Returns the scores as JSON, without those that have no value.

    judged: name of an output -> what was found. whole: the outputs are a folder's: then the result
    is {"outputs": {name: {metric: value}}, "means": {metric: {"mean": value, "n": how many}}}, else
    {metric: value} of the only output.
    """
    outputs = {
        name: {s.name: s.value for s in each.scores if s.value is not None}
        for name, each in judged.items()
    }
    found = means([each.scores for each in judged.values()])
    all_means = {name: {"mean": mean, "n": n} for name, (mean, n) in found.items()}
    facts = {"outputs": outputs, "means": all_means} if whole else next(iter(outputs.values()))
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(judged: Mapping[str, Judged]) -> str:
    """Returns the scores as CSV (RFC 4180) with the `COLUMNS`; a missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for name, each in judged.items():
        for s in each.scores:
            value = "" if s.value is None else repr(s.value)
            writer.writerow([name, s.name, value, s.unit, s.better, s.reason])
    return text.getvalue()


def as_page(title: str, judged: Mapping[str, Judged], whole: bool) -> str:
    """Returns the page: for a folder (`whole`) the means first; then each output with its clips."""
    sections = []
    if whole:
        found = means([each.scores for each in judged.values()])
        rows = [(name, f"{mean:.4f}", str(n)) for name, (mean, n) in found.items()]
        sections.append(Section("Means", table=Table(("metric", "mean", "n"), rows)))
    for name, each in judged.items():
        rows = [(s.name, *_cells(s), s.better) for s in each.scores]
        table = Table(("metric", "value", "", "better"), rows)
        sections.append(Section(name, each.clips, table, each.plots, each.notes))
    return sheet(title, sections)


def _cells(score: Score) -> tuple[str, str]:
    """The value of a score, and its unit or the reason why it has none."""
    if score.value is None:
        return "-", score.reason
    return f"{score.value:.4f}", score.unit
