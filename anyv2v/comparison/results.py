"""What a comparison found: scores of cells, their means and paired differences, as texts and files.

Every mean is over the edits that the cells have in common, and its interval of 95 % is that of a
bootstrap over clips.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anyv2v.comparison.cells import Cell, Comparison
from anyv2v.comparison.intervals import Mean, bootstrap
from anyv2v.evaluation.scores import Score

TRUE_HEADS = ("psnr_truth", "ssim_truth", "flicker_truth")
"""Metrics of the short table, without their variants, where edits have a truth."""
HEADS = ("psnr_background", "flow_difference", "warping_error")
"""The same where none has."""
CLIP_HEADS = ("clip_text", "clip_image_consecutive")
"""The same, besides the others, where a CLIP was given."""


@dataclass(frozen=True)
class Result:
    """The scores of one cell."""

    cell: Cell
    """Which output it is."""
    scores: Sequence[Score]
    """The scores; those without a value say why."""

    @property
    def values(self) -> dict[str, float]:
        """Metric -> value, of those that have one."""
        return {score.name: score.value for score in self.scores if score.value is not None}


@dataclass(frozen=True)
class Row:
    """An editor of the first frame with a method, over all edits."""

    editor: str
    """Name of the editor."""
    method: str
    """Name of the method."""
    edits: int
    """Number of edits that were made."""
    means: Mapping[str, Mean]
    """Metric -> mean."""
    over_method: Mapping[str, Mean] = field(default_factory=dict)
    """Metric -> mean difference, this less the base method, on the same first frames."""
    over_editor: Mapping[str, Mean] = field(default_factory=dict)
    """Metric -> mean difference, this less the base editor, by the same method."""


@dataclass(frozen=True)
class Findings:
    """All that a comparison found."""

    comparison: Comparison
    """What was compared."""
    results: Sequence[Result]
    """The scores of all cells that were made."""
    seed: int = 0
    """The seed of the bootstrap."""

    @property
    def metrics(self) -> dict[str, Score]:
        """Metric -> a score of it, for its unit and which direction is better."""
        return {score.name: score for result in self.results for score in result.scores}

    def heads(self) -> list[str]:
        """Returns the metrics of the short table: a few that have values, in a fixed order."""
        names = [name for name in self.metrics if any(name in r.values for r in self.results)]
        true = any(name.partition("[")[0] in TRUE_HEADS for name in names)
        wanted = (*(TRUE_HEADS if true else HEADS), *CLIP_HEADS)
        # the first variant of each
        firsts = {name.partition("[")[0]: name for name in reversed(names)}
        return [firsts[head] for head in wanted if head in firsts]

    def rows(self) -> list[Row]:
        """Returns the rows of the table, one for each editor with each method."""
        pairs = [(frame.name, method.name) for frame, method in self.comparison.pairs()]
        editor, method = pairs[0]
        return [self._row(pair, (pair[0], method), (editor, pair[1])) for pair in pairs]

    def _row(self, pair: tuple[str, str], base: tuple[str, str], other: tuple[str, str]) -> Row:
        mine = self._of(pair)
        means = self._each(lambda name: [(k[0], v[name]) for k, v in mine.items() if name in v])
        over = [
            {} if against == pair else self._difference(mine, self._of(against))
            for against in (base, other)
        ]
        return Row(*pair, len(mine), means, *over)

    def _of(self, pair: tuple[str, str]) -> dict[tuple[str, str], dict[str, float]]:
        """(clip, edit) -> metric -> value, of one editor and method."""
        return {
            (result.cell.edit.clip, result.cell.edit.name): result.values
            for result in self.results
            if (result.cell.frame.name, result.cell.method.name) == pair
        }

    def _difference(self, mine: Mapping, theirs: Mapping) -> dict[str, Mean]:
        return self._each(
            lambda name: [
                (key[0], mine[key][name] - theirs[key][name])
                for key in mine.keys() & theirs.keys()
                if name in mine[key] and name in theirs[key]
            ]
        )

    def _each(self, pick: Callable[[str], list[tuple[str, float]]]) -> dict[str, Mean]:
        """Metric -> mean of the (clip, value) pairs that `pick` returns for it."""
        found = {}
        for name in self.metrics:
            pairs = sorted(pick(name))
            mean = bootstrap([v for _, v in pairs], [clip for clip, _ in pairs], self.seed)
            if mean is not None:
                found[name] = mean
        return found


def short_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and the rows of the short table, as texts.

    Besides the means it has the differences of the first metric.
    """
    heads, rows = findings.heads(), findings.rows()
    base = rows[0]
    columns = ["first frame", "method", "edits", *(_titled(findings, name) for name in heads)]
    columns += [f"less {base.method}", f"less {base.editor}"] if heads else []
    lines = []
    for row in rows:
        cells = [_cell(findings, row.means, name) for name in heads]
        for differences in (row.over_method, row.over_editor) if heads else ():
            cells.append(_cell(findings, differences, heads[0], signed=True))
        lines.append([row.editor, row.method, str(row.edits), *cells])
    return columns, lines


def _cell(findings: Findings, means: Mapping[str, Mean], name: str, signed: bool = False) -> str:
    digits = 2 if findings.metrics[name].unit else 3
    return means[name].text(digits, signed) if name in means else ""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, whose columns are aligned, as they are on a terminal."""
    lines = [[each.replace("|", "\\|") for each in line] for line in (columns, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def as_json(findings: Findings, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all scores, means and differences as JSON has them; `about` comes first."""
    return {
        **about,
        "metrics": {n: {"unit": s.unit, "better": s.better} for n, s in findings.metrics.items()},
        "rows": [asdict(row) for row in findings.rows()],
        "cells": [
            {**_names(result.cell), "scores": {s.name: s.value for s in result.scores}}
            for result in findings.results
        ],
    }


def as_csv(findings: Findings) -> str:
    """Returns the scores of all cells as CSV: one line for each cell, one column for each metric.

    A score without a value is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "edit", "editor", "method", *findings.metrics])
    for result in findings.results:
        values = [result.values.get(name, "") for name in findings.metrics]
        writer.writerow([*_names(result.cell).values(), *values])
    return text.getvalue()


def _names(cell: Cell) -> dict[str, str]:
    edit, frame, method = cell.edit, cell.frame, cell.method
    return {"clip": edit.clip, "edit": edit.name, "editor": frame.name, "method": method.name}


def _titled(findings: Findings, name: str) -> str:
    """A metric without its variant, with its unit and an arrow that points to what is better."""
    score = findings.metrics[name]
    arrow = {"higher": " ↑", "lower": " ↓"}.get(score.better, "")
    return f"{name.partition('[')[0]}{', ' if score.unit else ''}{score.unit}{arrow}"
