"""Metrics of motion, by optical flow that is found without a network.

The flow is OpenCV's dense inverse search (DIS, Kroeger et al. 2016), preset medium. Clips are uint8
RGB (f, h, w, 3), both of one shape and of at least two frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anyv2v.errors import InputError

NAME = "DIS medium"
"""The name of the flow in the names of metrics."""
ENLARGED = 256
"""Shorter side, in pixels, to which smaller frames are enlarged before their flow is estimated:
the smallest patch of the flow has 8 pixels."""
CONSISTENT, SLACK = 0.01, 0.5
"""A pixel is visible in both frames if the flow to the other and back ends within the square root
of `CONSISTENT` times the two squared lengths plus `SLACK` pixels (Sundaram et al. 2010)."""


def require_opencv() -> None:
    """Raises InputError if OpenCV is not installed."""
    _opencv()


def _opencv():
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "optical flow is found by OpenCV, which is missing: pip install '.[evaluate]'"
        ) from error
    return cv2


def flows(clip: np.ndarray, backward: bool = False) -> np.ndarray:
    """Returns the flow between consecutive frames as (x, y) in pixels, float32 (f - 1, h, w, 2).

    Element i says for each pixel of frame i how far right and down it lies in frame i + 1, or if
    `backward`, for each pixel of frame i + 1 how it lies in frame i. Raises InputError if OpenCV is
    not installed.
    """
    cv2 = _opencv()
    height, width = clip.shape[1:3]
    factor = max(1, round(ENLARGED / min(height, width)))
    size = width * factor, height * factor
    grays = [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size) for frame in clip]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = []
    for before, after in zip(grays, grays[1:], strict=False):
        first, second = (after, before) if backward else (before, after)
        flow = search.calc(first, second, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA)
        found.append(flow / factor)
    return np.stack(found)


def sampled(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the values of a picture (h, w) or (h, w, c) at places between pixels, bilinearly.

    at: (h, w, 2) float32, (x, y) in pixels; beyond its border the picture is continued by the
    pixels at the border. The result has the dtype of the picture, uint8 or float32.
    """
    cv2 = _opencv()
    x, y = at[..., 0], at[..., 1]
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def flow_difference(
    a: Sequence[np.ndarray] | np.ndarray,
    b: Sequence[np.ndarray] | np.ndarray,
    region: np.ndarray | None = None,
) -> float | None:
    """Returns the mean end-point difference of two clips' flows, in pixels per frame.

    a, b: flows (f - 1, h, w, 2), as `flows` returns them. region: bool (f - 1, h, w), the pixels
    that count; None counts all. Returns None if the region is empty.
    """
    distance = np.linalg.norm(np.asarray(a, np.float64) - b, axis=-1)
    if region is not None:
        distance = distance[region]
    return float(distance.mean()) if distance.size else None


def warping_error(clip: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> float | None:
    """Returns how much a clip changes along given motion: the warping error (Lai et al. 2018).

    forward, backward: the flows (f - 1, h, w, 2) of the clip whose motion counts, both ways, as
    `flows` returns them. Each frame i + 1 is warped back to frame i along `forward`; the result is
    the root mean square of the difference over all pixels that are visible in both frames, and
    colors, in levels of 0 to 255. None if no pixel is visible in two frames.
    """
    total, count = 0.0, 0
    for i, (there, back) in enumerate(zip(forward, backward, strict=True)):
        where = visible(there, back)
        warped = sampled(clip[i + 1].astype(np.float32), _grid(where.shape) + there)
        difference = (warped - clip[i].astype(np.float32))[where].astype(np.float64)
        total, count = total + float((difference**2).sum()), count + difference.size
    return float(np.sqrt(total / count)) if count else None


def visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Returns which pixels of a frame are visible in the next one: bool (h, w).

    forward: the flow (h, w, 2) from the frame to the next one; backward: that from the next one to
    the frame. A pixel is visible if it stays inside the picture and comes back, see `CONSISTENT`.
    """
    height, width = forward.shape[:2]
    to = _grid((height, width)) + forward
    back = sampled(backward, to)
    off = np.square(forward + back).sum(-1)
    most = CONSISTENT * (np.square(forward).sum(-1) + np.square(back).sum(-1)) + SLACK
    x, y = to[..., 0], to[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (off <= most)


def _grid(size: tuple[int, ...]) -> np.ndarray:
    """The place (x, y) of each pixel of a picture (height, width): float32 (h, w, 2)."""
    height, width = size
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
