"""Scores of an edited clip against the true result of the edit.

Clips are (f, h, w, 3) uint8, RGB, all of one size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v.media.psnr import psnr
from anyv2v.metrics.pixels import flicker, ssim, unchanged
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import SceneEdit

WINDOW = 0.4
"""How far from its true place a sprite is searched for, as a fraction of the shorter side."""


@dataclass(frozen=True)
class Truth:
    """The true result of an edit, and where in it the sprite can be seen that is scored."""

    source: np.ndarray
    """The clip before the edit."""
    frames: np.ndarray
    """The clip after the edit, as it should be."""
    without: np.ndarray
    """The clip after the edit without the scored sprite."""
    cover: np.ndarray
    """(f, h, w) float32 in 0..1: how much of a pixel of `frames` shows the scored sprite."""
    source_cover: np.ndarray
    """(f, h, w) float32 in 0..1: the same for `source`; zero if the edit adds the sprite."""

    @staticmethod
    def of(edit: SceneEdit, size: tuple[int, int], frames: int) -> Truth:
        """Renders the truth of an edit; size is (width, height), frames the number of frames."""
        sprites, i = edit.truth.sprites, edit.sprite
        without = replace(edit.truth, sprites=sprites[:i] + sprites[i + 1 :])
        clips = render([edit.source, edit.truth, without], size, frames)
        covers = clips.covers.numpy()
        source, truth, background = clips.frames.numpy()
        return Truth(source, truth, background, covers[1, i], covers[0, i])


def scores(clip: np.ndarray, truth: Truth) -> dict[str, float]:
    """Computes all scores of an edited clip; a score that does not apply to the edit is NaN.

    Frame 0 is an input of the edit; only flicker uses it, in its first difference.

    psnr: dB, over the whole picture. outside: dB, over the pixels that the edit does not change, at
    least three pixels away from those that it does. ssim, flicker: see `metrics.pixels`.
    trajectory: mean distance of the sprite from its true place, in pixels. iou, iou_source: overlap
    of the pixels that differ from the background with the sprite's true shape, and with its shape
    in the source; 0 to 1. colour: distance of the sprite's mean color from the true one, in RGB of
    0..1.
    """
    frames, true = clip[1:], truth.frames[1:]
    return {
        "psnr": psnr(frames, true),
        "ssim": ssim(frames, true),
        "outside": _outside(clip, truth),
        "trajectory": trajectory_error(clip, truth),
        "iou": iou(clip, truth, truth.cover),
        "iou_source": iou(clip, truth, truth.source_cover),
        "colour": _color_error(clip, truth),
        "flicker": flicker(clip, truth.frames),
    }


def trajectory_error(clip: np.ndarray, truth: Truth) -> float:
    """Returns the mean distance of the scored sprite from its true place, in pixels.

    Frame 0, and frames that show too little of the true sprite for `offset`, do not count; the
    result is NaN if no frame is left.
    """
    offsets = [offset(clip[k], truth.without[k], truth.cover[k]) for k in range(1, len(clip))]
    distances = [np.hypot(*d) for d in offsets if d is not None]
    return float(np.mean(distances)) if distances else float("nan")


def offset(
    picture: np.ndarray, without: np.ndarray, cover: np.ndarray
) -> tuple[float, float] | None:
    """Returns how many pixels a sprite lies to the right of and below its true place, as (x, y).

    picture: one frame of the edited clip, (h, w, 3) uint8. without: the true frame without the
    sprite. cover: (h, w) in 0..1, how much of a pixel of the true frame shows the sprite. Returns
    None if the cover adds up to less than 6 pixels.

    The picture's distance from `without`, whatever the sprite's color, is correlated with the cover
    at every offset within `WINDOW`; a parabola refines the best offset.
    """
    if cover.sum() < 6:
        return None
    stands_out = _difference(picture, without)
    stands_out = torch.from_numpy(stands_out - np.median(stands_out))
    reach = round(WINDOW * min(cover.shape))
    mask = torch.from_numpy(cover).double()
    padded = F.pad(stands_out, [reach] * 4)[None, None]
    inside = F.pad(torch.ones_like(stands_out), [reach] * 4)[None, None]
    fit = F.conv2d(padded, mask[None, None])[0, 0]
    # normalize by the part of the cover that lies inside the picture at that offset
    energy = F.conv2d(inside, mask[None, None] ** 2)[0, 0]
    fit = fit / energy.clamp(min=0.25 * float((mask**2).sum())).sqrt()
    row, column = divmod(int(fit.argmax()), fit.shape[1])
    x = column + _peak(fit[row], column)
    y = row + _peak(fit[:, column], row)
    return x - reach, y - reach


def iou(clip: np.ndarray, truth: Truth, cover: np.ndarray) -> float:
    """Returns the intersection over union of `cover` and the sprite that the clip shows, 0 to 1.

    The clip shows the sprite where it differs from `truth.without` by more than half of the true
    sprite's mean contrast. cover: (f, h, w) in 0..1; more than 0.5 counts as covered. Frame 0 is
    left out. Returns NaN if no pixel of the true result shows the sprite fully, or if `cover` is
    all zero.
    """
    contrast = _difference(truth.frames, truth.without)[1:]
    solid = truth.cover[1:] > 0.9
    if not solid.any() or not cover.any():
        return float("nan")
    visible = _difference(clip, truth.without)[1:] > 0.5 * contrast[solid].mean()
    covered = cover[1:] > 0.5
    return float((visible & covered).sum() / max(1, (visible | covered).sum()))


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a.astype(np.float64) - b.astype(np.float64), axis=-1)


def _outside(clip: np.ndarray, truth: Truth) -> float:
    region = unchanged(truth.source, truth.frames)[1:]
    if region.mean() < 0.05:
        return float("nan")
    return psnr(clip[1:][region], truth.frames[1:][region])


def _color_error(clip: np.ndarray, truth: Truth) -> float:
    solid = truth.cover[1:] > 0.9
    if not solid.any():
        return float("nan")
    color, true = (x[1:][solid].mean(0) / 255 for x in (clip, truth.frames))
    return float(np.linalg.norm(color - true))


def _peak(line: Tensor, i: int) -> float:
    """Position, relative to index i, of the maximum of the parabola through i and its neighbors."""
    if not 0 < i < len(line) - 1:
        return 0.0
    before, here, after = (float(v) for v in line[i - 1 : i + 2])
    curve = before - 2 * here + after
    return 0.0 if curve >= 0 else 0.5 * (before - after) / curve
