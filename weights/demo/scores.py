"""How near a clip is to the truth of an edit. Clips are (f, h, w, 3) uint8, of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyv2v.media.psnr import psnr
from anyv2v.weights.demo.render import render
from anyv2v.weights.demo.scenes import SceneEdit

WINDOW = 0.4
"""How far from the truth, in parts of the side, a sprite is looked for."""


@dataclass(frozen=True)
class Truth:
    """What is known of an edit: pictures, and where the sprite that is watched can be seen."""

    source: np.ndarray
    frames: np.ndarray
    without: np.ndarray
    """The truth with all but that sprite."""
    cover: np.ndarray
    """(f, h, w) float32 0..1: how much of a pixel shows the sprite."""
    source_cover: np.ndarray
    """Its cover in the source; of an added sprite, zero."""

    @staticmethod
    def of(edit: SceneEdit, size: tuple[int, int], frames: int) -> Truth:
        sprites, i = edit.truth.sprites, edit.sprite
        without = replace(edit.truth, sprites=sprites[:i] + sprites[i + 1 :])
        clips = render([edit.source, edit.truth, without], size, frames)
        covers = clips.covers.numpy()
        return Truth(*clips.frames.numpy(), covers[1, i], covers[0, i])


def scores(clip: np.ndarray, truth: Truth) -> dict[str, float]:
    """All scores, the first frame left out because it is given. NaN: does not apply.

    psnr, outside: dB, over everything and where the edit changes nothing. ssim: 0..1. trajectory:
    mean distance of the sprite from its true place, in pixels. iou, iou_source: overlap of what
    stands out from the background with the true and with the source's shape. colour: distance of
    the sprite's mean colour from the true one, 0..1. flicker: how far the change from frame to
    frame is from the true one, in levels.
    """
    found, true = clip[1:], truth.frames[1:]
    return {
        "psnr": psnr(found, true),
        "ssim": ssim(found, true),
        "outside": _outside(clip, truth),
        "trajectory": trajectory_error(clip, truth),
        "iou": iou(clip, truth, truth.cover),
        "iou_source": iou(clip, truth, truth.source_cover),
        "colour": _colour_error(clip, truth),
        "flicker": _flicker(clip, truth.frames),
    }


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): window 11x11, Gaussian, deviation 1.5."""
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).flatten(0, 1)[:, None].double() for v in (a, b))
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(v, window)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return float((top / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


def trajectory_error(clip: np.ndarray, truth: Truth) -> float:
    """Mean distance in pixels, over the frames in which enough of the sprite can be seen."""
    moved = [offset(clip[k], truth.without[k], truth.cover[k]) for k in range(1, len(clip))]
    distances = [np.hypot(*d) for d in moved if d is not None]
    return float(np.mean(distances)) if distances else float("nan")


def offset(
    picture: np.ndarray, without: np.ndarray, cover: np.ndarray
) -> tuple[float, float] | None:
    """By how many pixels (x, y) a sprite is away from `cover`; None if too little of it shows.

    Only how much the picture stands out from the background counts, not in which colour: the cover
    is laid over that at every place within WINDOW, and the best place, refined by a parabola, won.
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
    # the part of the cover that lies in the picture is what can be compared
    energy = F.conv2d(inside, mask[None, None] ** 2)[0, 0]
    fit = fit / energy.clamp(min=0.25 * float((mask**2).sum())).sqrt()
    row, column = divmod(int(fit.argmax()), fit.shape[1])
    x = column + _peak(fit[row], column)
    y = row + _peak(fit[:, column], row)
    return x - reach, y - reach


def iou(clip: np.ndarray, truth: Truth, cover: np.ndarray) -> float:
    """Overlap over union of a cover and what stands out half as much as the true sprite does."""
    contrast = _difference(truth.frames, truth.without)[1:]
    solid = truth.cover[1:] > 0.9
    if not solid.any() or not cover.any():
        return float("nan")
    found = _difference(clip, truth.without)[1:] > 0.5 * contrast[solid].mean()
    wanted = cover[1:] > 0.5
    return float((found & wanted).sum() / max(1, (found | wanted).sum()))


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a.astype(np.float64) - b.astype(np.float64), axis=-1)


def _outside(clip: np.ndarray, truth: Truth) -> float:
    changed = torch.from_numpy(truth.source != truth.frames).any(-1).float()
    same = F.max_pool2d(changed[:, None], 5, 1, 2)[1:, 0].numpy() == 0
    if same.mean() < 0.05:
        return float("nan")
    return psnr(clip[1:][same], truth.frames[1:][same])


def _colour_error(clip: np.ndarray, truth: Truth) -> float:
    solid = truth.cover[1:] > 0.9
    if not solid.any():
        return float("nan")
    found, true = (x[1:][solid].mean(0) / 255 for x in (clip, truth.frames))
    return float(np.linalg.norm(found - true))


def _flicker(clip: np.ndarray, true: np.ndarray) -> float:
    found, wanted = (np.diff(x.astype(np.float64), axis=0) for x in (clip, true))
    return float(np.sqrt(np.mean((found - wanted) ** 2)))


def _peak(line: Tensor, i: int) -> float:
    """Where between its neighbours the maximum of a parabola through them lies."""
    if not 0 < i < len(line) - 1:
        return 0.0
    before, here, after = (float(v) for v in line[i - 1 : i + 2])
    curve = before - 2 * here + after
    return 0.0 if curve >= 0 else 0.5 * (before - after) / curve
