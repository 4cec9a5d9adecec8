"""Edits without a network: the edited first frame is carried along by what the source shows.

Clips are (f, h, w, 3) uint8, RGB; `first` is the edited first frame, (h, w, 3) uint8. The flow is
OpenCV's, which the other rows of the benchmark do without.
"""

from __future__ import annotations

import numpy as np
import torch

from anyv2v.correspondence.patches import match_patches

ENLARGED = 256
"""Shorter side, in pixels, to which smaller frames are enlarged before their flow is estimated:
the smallest patch of the flow has 8 pixels, a quarter of the demo's picture."""


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

    The flow from each frame to the one before it is found by dense inverse search (Kroeger et al.
    2016), preset medium, and composed with the places of the frame before: the flow straight to
    frame 0 fails at what turns.
    """
    import cv2

    height, width = source.shape[1:3]
    factor = max(1, round(ENLARGED / min(height, width)))
    size = width * factor, height * factor
    grays = [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size) for frame in source]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    found = [here]
    for before, after in zip(grays, grays[1:], strict=False):
        flow = cv2.resize(
            search.calc(after, before, None), (width, height), interpolation=cv2.INTER_AREA
        )
        found.append(_sampled(found[-1], here + flow / factor))
    return np.stack(found)


def _carried(source: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of frame 0 (h, w, 3) where the flow carries them, (f, h, w, 3) float32."""
    return np.stack([_sampled(values.astype(np.float32), at) for at in places(source)])


def _sampled(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
    import cv2

    x, y = at[..., 0], at[..., 1]
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _levels(clip: np.ndarray) -> np.ndarray:
    return clip.round().clip(0, 255).astype(np.uint8)
