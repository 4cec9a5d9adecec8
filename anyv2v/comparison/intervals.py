"""Intervals of 95 %: of means over clips, by bootstrap, and of shares of votes, by Wilson."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

DRAWS = 2000
"""Number of resampled sets of clips."""
TAILS = (0.025, 0.975)
"""The quantiles between which the interval of a mean lies."""
Z = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Mean:
    """A mean, or a mean difference, with its interval of 95 %."""

    mean: float
    """The mean over all edits."""
    low: float | None
    """Lower bound of the interval; None of a single clip, which says nothing of others."""
    high: float | None
    """Upper bound of the interval."""
    edits: int
    """Number of edits."""

    def text(self, digits: int, signed: bool = False) -> str:
        """Returns the mean with its interval in brackets, with so many digits after the point.

        signed: with a sign, as differences have it.
        """
        sign = "+" if signed else ""
        mean, *bounds = (
            "" if value is None else f"{value:{sign}.{digits}f}"
            for value in (self.mean, self.low, self.high)
        )
        return f"{mean} [{', '.join(bounds)}]" if all(bounds) else mean


def bootstrap(values: Sequence[float], clips: Sequence[str], seed: int = 0) -> Mean | None:
    """Returns the mean of values with its percentile bootstrap interval; None without values.

    clips: the clip of each value. Clips are resampled and not values, because edits of one clip are
    alike. For a paired comparison pass the differences.
    """
    if not len(values):
        return None
    mean, names = float(np.mean(values)), sorted(set(clips))
    if len(names) == 1:
        return Mean(mean, None, None, len(values))
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, clip in zip(values, clips, strict=True):
        sums[place[clip]] += value
        counts[place[clip]] += 1
    picks = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, TAILS)
    return Mean(mean, float(low), float(high), len(values))


def wilson(wins: int, votes: int) -> tuple[float, float]:
    """Returns the interval of 95 % of a share of wins (Wilson 1927); (0, 1) without votes."""
    if not votes:
        return 0.0, 1.0
    share, part = wins / votes, Z * Z / votes
    middle = (share + part / 2) / (1 + part)
    half = Z * sqrt(share * (1 - share) / votes + part / (4 * votes)) / (1 + part)
    return max(0.0, middle - half), min(1.0, middle + half)
