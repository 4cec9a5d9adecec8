"""Edits without a network: the edited first frame is carried along by what the source shows.

Clips are (f, h, w, 3) uint8, RGB; `first` is the edited first frame, (h, w, 3) uint8. The flow is
that of `metrics.flow`, which needs OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from anyv2v.correspondence.patches import match_patches
from anyv2v.metrics.flow import flows, require_opencv, sampled


def static(source: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The edited first frame, repeated."""
    return np.repeat(first[None], len(source), axis=0)


def unedited(source: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The source as it is."""
    return source


def warp(source: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The edited first frame, warped along the optical flow of the source."""
    return _levels(_carried(source, first))


def difference(source: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The source plus the difference of the first frames, warped along the source's flow."""
    change = first.astype(np.float32) - source[0]
    return _levels(source + _carried(source, change))


def copy(source: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Every patch of 5x5 pixels is found in the source's first frame, and edited as it is there."""
    edited = torch.from_numpy(first.copy())[None]
    return np.stack([match_patches(frame, source[:1]).take(edited).numpy() for frame in source])


def places(source: np.ndarray) -> np.ndarray:
    """Where each pixel was in frame 0, as (x, y) in pixels, (f, h, w, 2) float32.

    The flow from each frame to the one before it is composed with the places of the frame before:
    the flow straight to frame 0 fails at what turns. Raises InputError if OpenCV is not installed.
    """
    height, width = source.shape[1:3]
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    found = [here]
    for flow in flows(source, backward=True):
        found.append(sampled(found[-1], here + flow))
    return np.stack(found)


def _carried(source: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of frame 0 (h, w, 3) where the flow carries them, (f, h, w, 3) float32."""
    return np.stack([sampled(values.astype(np.float32), at) for at in places(source)])


def _levels(clip: np.ndarray) -> np.ndarray:
    return clip.round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Carry:
    """A way to get an edited clip from the source and the edited first frame."""

    make: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(source, first) -> edited clip."""
    needs_flow: bool = False
    """Whether it needs OpenCV."""

    def check(self) -> None:
        """Raises InputError if OpenCV is needed and missing."""
        if self.needs_flow:
            require_opencv()


BASELINES = {
    "static": Carry(static),
    "source": Carry(unedited),
    "warp": Carry(warp, needs_flow=True),
    "difference": Carry(difference, needs_flow=True),
    "copy": Carry(copy),
}
"""Name -> baseline."""
