"""Scores of the rows, their means with intervals, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.hard import HARDSHIPS
from anyv2v.weights.demo.scenes import KINDS
from anyv2v.weights.demo.scores import Truth, scores
from bench.edit_quality.rows import ROWS

SCORES = ("psnr", "ssim", "outside", "trajectory", "iou", "iou_source", "colour", "flicker")
GROUPS = ("all", *KINDS, "colour+background", *HARDSHIPS)
"""Sets of scenes that have a table: kinds of edits, joined by "+", and hardships."""
MARGIN = 160
"""Width of the names beside a contact sheet, in pixels."""

Values = Mapping[str, float | None]


def score(name: str, clip: np.ndarray, truth: Truth) -> Values:
    """All scores of a row's clip; those that do not apply are None, because JSON has no NaN."""
    if ROWS[name].reconstructs:
        return dict.fromkeys(SCORES) | {"psnr": psnr(clip[1:], truth.source[1:])}
    return {k: None if np.isnan(v) else v for k, v in scores(clip, truth).items()}


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean and the bounds of its 95 % bootstrap interval; NaN are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def table(results: Mapping[str, dict]) -> str:
    """The means of every score for every set of scenes, and how the rows compare with the edit."""
    lines = []
    for group in GROUPS:
        parts = group.split("+")
        scenes = [r for r in results.values() if group == "all" or kinds(r) & set(parts)]
        if scenes:
            heads = "".join(f"{s:>12}" for s in SCORES) + "   edit less this one"
            lines.append(f"\n{group}, {len(scenes)} scenes\n{'':24}{heads}")
            lines += [
                _line(name, scenes) for name in ROWS if any(name in r["scores"] for r in scenes)
            ]
    return "\n".join(lines)


def kinds(result: Mapping) -> set[str]:
    """The sets of scenes that a scene belongs to."""
    return {result["kind"], result.get("hardship", "")}


def _line(name: str, scenes: list[dict]) -> str:
    cells = []
    for s in SCORES:
        mean, low, high = interval(column(scenes, name, s))
        text = "" if np.isnan(mean) else f"{mean:.2f}" if mean > 3 else f"{mean:.3f}"
        if s == "psnr":
            text += f" ±{(high - low) / 2:.1f}"
        cells.append(f"{text:>12}")
    line = f"{name:24}" + "".join(cells)
    gains = column(scenes, "edit", "psnr") - column(scenes, name, "psnr")
    gains = gains[~np.isnan(gains)]
    if name == "edit" or ROWS[name].reconstructs or not len(gains):
        return line
    mean, low, high = interval(gains)
    better = f"better in {(gains > 0).sum()} of {len(gains)}"
    return f"{line}   {mean:+.2f} [{low:+.2f}, {high:+.2f}], {better}"


def column(scenes: list[dict], name: str, score: str) -> np.ndarray:
    """One score of one row in every scene; NaN where it does not apply or was not measured."""
    return np.array([r["scores"].get(name, {}).get(score) for r in scenes], dtype=float)


def contact_sheet(clips: Mapping[str, np.ndarray], truth: Truth, zoom: int = 2) -> np.ndarray:
    """Draw one row of frames for each clip, with its name: truth, then the clips in order."""
    rows = {"truth": truth.frames, **clips}
    pictures = [np.concatenate(list(row), axis=1) for row in rows.values()]
    picture = np.concatenate(pictures).repeat(zoom, 0).repeat(zoom, 1)
    names = Image.new("RGB", (MARGIN, len(picture)), "white")
    height = len(picture) // len(rows)
    for i, name in enumerate(rows):
        ImageDraw.Draw(names).text((4, (i + 0.5) * height), name, "black", anchor="lm")
    return np.concatenate([np.asarray(names), picture], axis=1)
