"""The colours of a reference picture, carried over to the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anyv2v import checks
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.oklab import from_rgb, to_rgb

MOST = 20000
"""Pixels of each picture that the distributions are measured on."""


@dataclass(frozen=True)
class Palette:
    """Gives the frame the colours of the reference; with a mask, what lies within it."""

    method: Literal["gaussian", "transport"] = "gaussian"
    """By mean and covariance, or by the whole distribution."""
    strength: float = 1.0
    """0: the frame as it is; 1: the reference's colours."""

    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __post_init__(self) -> None:
        checks.one_of("method", self.method, ("gaussian", "transport"))
        checks.fraction("strength", self.strength)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"reference", "seed"} if self.method == "transport" else {"reference"})

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        lab = from_rgb(request.frame)
        chosen = np.full(lab.shape[:2], True) if request.mask is None else request.mask > 0
        colours, wanted = lab[chosen], from_rgb(request.reference).reshape(-1, 3)
        found = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            if self.method == "gaussian":
                moved = monge(colours, wanted)
            else:
                moved = sliced_transport(colours, wanted, rng)
            picture = lab.copy()
            picture[chosen] += self.strength * (moved - colours)
            found.append(to_rgb(picture))
        return found


def monge(colours: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n, 3) with the mean and covariance of `wanted` (m, 3), moved as little as that takes.

    The optimal map between two Gaussians (Pitie and Kokaram 2007): x -> m' + A (x - m) with
    A = S^-1/2 (S^1/2 S' S^1/2)^1/2 S^-1/2, S and S' the covariances.
    """
    mean, mean_wanted = colours.mean(0), wanted.mean(0)
    # a picture of one colour has no covariance that could be inverted
    grain = 1e-10 * np.eye(3)
    s, s_wanted = (np.cov(x.T, bias=True) + grain for x in (colours, wanted))
    half, inverse = _power(s, 0.5), _power(s, -0.5)
    a = inverse @ _power(half @ s_wanted @ half, 0.5) @ inverse
    return mean_wanted + (colours - mean) @ a.T


def sliced_transport(
    colours: np.ndarray, wanted: np.ndarray, rng: np.random.Generator, rounds: int = 30
) -> np.ndarray:
    """(n, 3) distributed like `wanted` (m, 3): along random axes in turn, each quantile to its own.

    Pitie, Kokaram and Dahyot 2007; Rabin et al. 2012.
    """
    wanted = wanted[rng.permutation(len(wanted))[:MOST]]
    levels = np.linspace(0, 1, 256)
    moved = colours.copy()
    for _ in range(rounds):
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        along, wanted_along = moved @ axes, wanted @ axes
        sample = along[rng.permutation(len(along))[:MOST]]
        for i in range(3):
            here, there = (np.quantile(x[:, i], levels) for x in (sample, wanted_along))
            # every quantile moves as far as its own; what lies between and beyond, alongside
            along[:, i] += np.interp(along[:, i], here, there - here)
        moved = along @ axes.T
    return moved


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values.clip(1e-12) ** exponent @ vectors.T
