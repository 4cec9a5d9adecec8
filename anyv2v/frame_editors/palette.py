"""An editor that transfers the colors of a reference picture to the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.oklab import from_rgb, to_rgb
from anyv2v.runtime.interrupt import check_interrupt

SAMPLE = 20000
"""Most pixels, drawn at random, from which the distribution of a picture's colors is measured."""


@dataclass(frozen=True)
class Palette:
    """Gives the frame the colors of the reference; with a mask, only what lies within it."""

    method: Literal["gaussian", "transport"] = "gaussian"
    """"gaussian" matches the mean and covariance of the colors, "transport" all of their
    distribution.
    """
    strength: float = 1.0
    """How far the colors move, from 0 (the frame as it is) to 1 (the colors of the reference)."""

    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __post_init__(self) -> None:
        checks.one_of("method", self.method, ("gaussian", "transport"))
        checks.fraction("strength", self.strength)

    @property
    def uses(self) -> frozenset[str]:
        """{"reference"}, and also "seed" for "transport", which is random; see `FrameEditor`."""
        return frozenset({"reference", "seed"} if self.method == "transport" else {"reference"})

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns a frame with the reference's colors for each seed; see `FrameEditor`.

        Raises InputError if there is no reference.
        """
        if request.reference is None:
            raise InputError("Palette needs reference")
        lab = from_rgb(request.frame)
        selected = np.full(lab.shape[:2], True) if request.mask is None else request.mask > 0
        colors, target = lab[selected], from_rgb(request.reference).reshape(-1, 3)
        edited_frames = []
        for seed in seeds:
            check_interrupt()
            if self.method == "gaussian":
                moved = monge(colors, target)
            else:
                moved = sliced_transport(colors, target, np.random.default_rng(seed))
            picture = lab.copy()
            picture[selected] += self.strength * (moved - colors)
            edited_frames.append(to_rgb(picture))
        return edited_frames


def monge(colors: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Moves colors (n, 3), as little as possible, to the mean and covariance of `target` (m, 3).

    Returns the moved colors (n, 3). The map is the optimal transport between Gaussians (Pitie and
    Kokaram 2007): x -> m' + A (x - m) with A = S^-1/2 (S^1/2 S' S^1/2)^1/2 S^-1/2, where m and S
    are the mean and covariance of `colors`, and m' and S' are those of `target`.
    """
    mean, target_mean = colors.mean(0), target.mean(0)
    # regularized, because the covariance of a single color cannot be inverted
    grain = 1e-10 * np.eye(3)
    s, target_s = (np.cov(x.T, bias=True) + grain for x in (colors, target))
    half, inverse = _power(s, 0.5), _power(s, -0.5)
    a = inverse @ _power(half @ target_s @ half, 0.5) @ inverse
    return target_mean + (colors - mean) @ a.T


def sliced_transport(
    colors: np.ndarray, target: np.ndarray, rng: np.random.Generator, rounds: int = 30
) -> np.ndarray:
    """Moves colors (n, 3) to the distribution of `target` (m, 3) by sliced optimal transport.

    Returns the moved colors (n, 3). Each of `rounds` rounds matches the quantiles along three
    orthogonal axes (Pitie, Kokaram and Dahyot 2007; Rabin et al. 2012), drawn from `rng`.
    """
    target = target[rng.permutation(len(target))[:SAMPLE]]
    levels = np.linspace(0, 1, 256)
    moved = colors.copy()
    for _ in range(rounds):
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        along, target_along = moved @ axes, target @ axes
        sample = along[rng.permutation(len(along))[:SAMPLE]]
        for i in range(3):
            old, new = (np.quantile(x[:, i], levels) for x in (sample, target_along))
            # shifts are interpolated between quantiles, and constant beyond the outermost ones
            along[:, i] += np.interp(along[:, i], old, new - old)
        moved = along @ axes.T
    return moved


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """The matrix power of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values.clip(1e-12) ** exponent @ vectors.T
