"""Writes what a comparison found: a table, the numbers as JSON and CSV, and a page of the clips."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyv2v.comparison.cells import Layout
from anyv2v.comparison.results import Findings, Result, as_csv, as_json, markdown, short_table
from anyv2v.evaluation.sheet import Section, Shown, Table, sheet
from anyv2v.media.video import read_video
from anyv2v.runtime.atomic_files import atomic_path

TABLE, SCORES, CSV, SHEET = "table.md", "scores.json", "scores.csv", "index.html"
"""Names of the files, in the folder of the comparison."""
MOST_SHOWN = 20
"""Most edits that the page shows, because a page of more is too large for browsers."""


def write_report(
    findings: Findings,
    layout: Layout,
    rates: Mapping[str, float],
    about: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """Writes the files `TABLE`, `SCORES`, `CSV` and `SHEET`; returns the table as text.

    rates: clip -> its frames per second. about: what the JSON file says of the run. notes: lines
    that say what is missing.
    """
    columns, rows = short_table(findings)
    text = markdown(columns, rows)
    facts = as_json(findings, {**about, "notes": list(notes)})
    _write(layout.folder / TABLE, text)
    _write(layout.folder / SCORES, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    _write(layout.folder / CSV, as_csv(findings))
    lead = Section("All edits", table=Table(columns, rows, explained(findings)), notes=notes)
    page = sheet("Comparison", [lead, *_sections(findings, layout, rates)])
    _write(layout.folder / SHEET, page)
    return text


def explained(findings: Findings) -> str:
    """Returns what the numbers of the table mean, in one line."""
    base, heads = findings.rows()[0], findings.heads()
    text = "Means over edits, with intervals of 95 % by bootstrap over clips"
    if not heads:
        return f"{text}."
    return (
        f"{text}; then the paired differences of {heads[0]} to the method {base.method} on the "
        f"same first frames, and to the first frames of {base.editor} by the same method."
    )


def _sections(findings: Findings, layout: Layout, rates: Mapping[str, float]) -> list[Section]:
    """A section of the page for each of the first edits."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in findings.results:
        groups[result.cell.edit.clip, result.cell.edit.name].append(result)
    shown = list(groups.items())[:MOST_SHOWN]
    return [_section(*key, results, findings, layout, rates) for key, results in shown]


def _section(
    clip: str,
    name: str,
    results: Sequence[Result],
    findings: Findings,
    layout: Layout,
    rates: Mapping[str, float],
) -> Section:
    edit, rate = results[0].cell.edit, rates[clip]
    paths = {"source": layout.clip(clip)}
    if edit.truth is not None:
        paths["truth"] = layout.truth(edit)
    for result in results:
        frame, method = result.cell.frame.name, result.cell.method.name
        paths[f"{frame}: {method}"] = layout.output(result.cell)
    clips = [Shown(label, read_video(path).frames, rate) for label, path in paths.items()]
    heads = [score for score in findings.metrics if any(score in r.values for r in results)]
    rows = [
        [result.cell.frame.name, result.cell.method.name]
        + [f"{result.values[head]:.4g}" if head in result.values else "" for head in heads]
        for result in results
    ]
    table = Table(["first frame", "method", *heads], rows)
    return Section(f"{clip}, {name}", clips, table, notes=[edit.prompt])


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
