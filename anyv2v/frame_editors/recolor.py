"""An editor that gives a part of the frame another color, and keeps light, shade and texture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import ImageColor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.oklab import from_rgb, to_rgb
from anyv2v.frame_editors.regions import dilate, label_regions

GRAY = 0.04
"""Chroma (OKLab) below which a color counts as gray, because its hue is not reliable."""

FLOOD = 3.0
"""A region larger than this many times its well-lit part is taken for more than one object."""


@dataclass(frozen=True)
class Recolor:
    """Gives a part of the frame another color: 'red > blue', '#c03020 > teal', or just 'blue'."""

    lightness: float = 0.5
    """How far the part takes on the lightness of the new color, 0 to 1; at 0 it keeps its own."""
    tolerance: float = 1.0
    """How far the part's color may be from the old color, above 0; 2 is twice as far as 1."""
    least: float = 0.1
    """Which regions of the old color are changed, 0 to 1: those that hold at least this fraction of
    what the region with most of the color holds. 1 changes only that region, 0 all of them."""

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction"})

    def __post_init__(self) -> None:
        checks.fraction("lightness", self.lightness)
        checks.positive("tolerance", self.tolerance)
        checks.fraction("least", self.least)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns the same recolored frame for each seed; see `FrameEditor`.

        Raises InputError if the instruction names no colors, or the old color is not in the frame.
        """
        old, new = parse_colors(request.instruction)
        lab = from_rgb(request.frame)
        mask = np.ones(lab.shape[:2]) if request.mask is None else request.mask
        if old is None and request.mask is not None:
            region = mask.astype(np.float64)
        else:
            if old is None:
                old = most_colorful(lab, mask)
            region = find_region(lab, old, mask, self.tolerance, self.least)
        if not region.any():
            raise InputError(
                f"recolour: nothing in the frame is like the first color of "
                f"{request.instruction!r}; name one that is, or give a mask"
            )
        weight = region[..., None]
        other = to_rgb(dye(lab, region, new, self.lightness))
        mixed = request.frame + weight * (other.astype(np.float64) - request.frame)
        return [np.rint(mixed).astype(np.uint8) for _ in seeds]


def parse_colors(instruction: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Parses "OLD > NEW" into two colors, each (3,) in OKLab; "NEW" alone into None and a color.

    Colors are CSS names, with or without spaces ("steel blue"), or in CSS notation such as #rrggbb.
    Raises InputError for anything else.
    """
    parts = [part.strip() for part in instruction.split(">")]
    if len(parts) > 2:
        raise InputError(f"recolour: {instruction!r} is not like 'red > blue' or 'blue'")
    colors = [_parse_color(part) for part in parts]
    return (None, colors[0]) if len(colors) == 1 else (colors[0], colors[1])


def _parse_color(name: str) -> np.ndarray:
    try:
        rgb = ImageColor.getrgb(name if "(" in name else name.replace(" ", ""))[:3]
        if not max(rgb) <= 255:
            raise ValueError
    except ValueError:
        raise InputError(
            f"recolour: {name!r} is no color; give 'OLD > NEW' or 'NEW', "
            "with names such as red or steelblue, or #c03020"
        ) from None
    return from_rgb(np.array(rgb, dtype=np.uint8))


def most_colorful(lab: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the color that stands out most in a picture, (3,) in OKLab.

    It is the mean of the commonest hue among the 5 % of pixels with the highest chroma. lab: the
    picture, OKLab (h, w, 3). mask: (h, w), 0 to 1; only pixels above 0.5 count, or all if none is.
    """
    pixels = lab[mask > 0.5] if (mask > 0.5).any() else lab.reshape(-1, 3)
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    pixels = pixels[chroma >= np.quantile(chroma, 0.95)]
    hue, chroma = np.arctan2(pixels[:, 2], pixels[:, 1]), np.hypot(pixels[:, 1], pixels[:, 2])
    near = np.cos(np.linspace(-np.pi, np.pi, 72, endpoint=False)[:, None] - hue) > np.cos(0.25)
    return pixels[near[(near * chroma).sum(1).argmax()]].mean(0)


def find_region(
    lab: np.ndarray, color: np.ndarray, mask: np.ndarray, tolerance: float, least: float
) -> np.ndarray:
    """Finds the part of a frame that has about a given color.

    Returns (h, w), 0 to 1: how far each pixel belongs to the part; all 0 if there is none. lab: the
    frame, OKLab (h, w, 3). color: OKLab (3,). mask: (h, w), 0 to 1, to which the result is limited.
    tolerance, least: see `Recolor`.

    Pixels are first searched for by lightness, chroma and hue. The part is then extended to all
    pixels of the hue that was found, in light and in shade, because shading moves a color towards
    black and keeps its hue.
    """
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    gray = np.hypot(*color[1:]) < GRAY
    if gray:
        near = _falling(np.abs(lightness - color[0]), 0.05 * tolerance, 0.4 * tolerance)
        near *= _falling(chroma, 0.25 * GRAY * tolerance, GRAY * tolerance)
    else:
        near = _falling(_hue_distance(lab, color), 0.1, 0.7 * tolerance)
        distance = 0.4 * np.hypot(lightness - color[0], chroma - np.hypot(*color[1:]))
        near *= _falling(distance, 0.0, 0.25 * tolerance)
        near *= 1 - _falling(chroma, 0.5 * GRAY, GRAY)
        if near.any():
            # a faint reflection is less of a red than the red object itself
            purest = min(np.hypot(*color[1:]), np.quantile(chroma[near > 0], 0.99))
            near *= (chroma / purest).clip(0, 1) ** 2
    near *= mask
    if near.max() < 0.05:
        return np.zeros_like(near)
    weight = (near**2)[..., None]
    mean = (lab * weight).sum((0, 1)) / weight.sum()
    similar = mask * _similar(lab, mean, gray, tolerance)
    region = similar * _foremost_regions(near * (similar > 0.5), similar > 0.5, least)
    if gray:
        return region
    # a navy background behind a blue object is not its shade: shade covers less than what is in
    # light
    lit = similar * _falling(np.abs(lightness - mean[0]), 0.15 * tolerance, 0.25 * tolerance)
    lit *= _foremost_regions(near * (lit > 0.5), lit > 0.5, least)
    return region if region.sum() <= FLOOD * lit.sum() else lit


def _similar(lab: np.ndarray, mean: np.ndarray, gray: bool, tolerance: float) -> np.ndarray:
    """How similar pixels (h, w, 3) are to a color (3,): (h, w), 0 to 1.

    Grays are compared by lightness and chroma, others by hue and purity, which shading keeps.
    """
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    if gray:
        similar = _falling(np.abs(lightness - mean[0]), 0.1 * tolerance, 0.3 * tolerance)
        return similar * _falling(chroma, 0.75 * GRAY * tolerance, 1.5 * GRAY * tolerance)
    # chroma relative to lightness, 1 for the color itself
    purity = chroma / np.hypot(*mean[1:]) * mean[0] / lightness.clip(0.1)
    similar = _falling(_hue_distance(lab, mean), 0.25 * tolerance, 0.5 * tolerance)
    similar *= 1 - _falling(purity, 0.2 / tolerance, 0.5 / tolerance)
    return similar * (1 - _falling(chroma, 0.25 * GRAY, 0.75 * GRAY))


def _foremost_regions(near: np.ndarray, core: np.ndarray, least: float) -> np.ndarray:
    """A bool mask (h, w) of the connected regions of `core` that hold most of the color.

    near: (h, w), how much of the color each pixel shows. core: bool (h, w). Chosen are the regions
    that hold at least the fraction `least` of what the region with most of the color holds.
    """
    # in blocks, because checks and folds of one garment lie about this far apart
    block = max(1, round(min(core.shape) / 80))
    height, width = (-(-n // block) for n in core.shape)

    def block_sums(values: np.ndarray) -> np.ndarray:
        rest = [(0, n * block - m) for n, m in zip((height, width), values.shape, strict=True)]
        return np.pad(values, rest).reshape(height, block, width, block).sum((1, 3))

    labels = label_regions(block_sums(core) > 0)
    amount = np.bincount(labels.ravel(), block_sums(near).ravel())
    amount[0] = 0
    chosen = (amount > 0) & (amount >= least * amount.max())
    # what fades out beyond the core belongs to the region
    mask = dilate(chosen[labels], 1)
    return mask.repeat(block, 0).repeat(block, 1)[: core.shape[0], : core.shape[1]]


def dye(lab: np.ndarray, region: np.ndarray, new: np.ndarray, lightness: float) -> np.ndarray:
    """Changes the colors of a picture so that the mean color of a region becomes `new`.

    Returns OKLab (h, w, 3), in which all pixels are changed. lab: the picture, OKLab (h, w, 3).
    region: weights (h, w), 0 to 1, of the mean, not all 0. new: OKLab (3,). lightness: see
    `Recolor`.

    A tint is the complex number (a + ib) / L, which light and shade do not change. The tints are
    rotated and scaled relative to the mean tint, so that grays within a colored part stay gray. In
    a gray part the difference of the tints is added instead.
    """
    total = region.sum()
    mean = (lab * region[..., None]).sum((0, 1)) / total
    tint = (lab[..., 1] + 1j * lab[..., 2]) / lab[..., 0].clip(0.05)
    level, target = lab[..., 0], mean[0] + lightness * (new[0] - mean[0])
    # neither more colorful nor purer than the new color is
    new_tint = complex(*new[1:]) / max(new[0], target, 0.05)
    old_tint = complex(*mean[1:]) / max(mean[0], 0.05)
    shifted = new_tint + (tint - old_tint)
    turned = tint * old_tint.conjugate() / max(abs(old_tint) ** 2, 1e-12)
    # stretching the differences in hue of a faint color would show the camera's noise
    hue = np.angle(turned) * min(1.0, abs(old_tint) / max(abs(new_tint), 1e-12))
    rotated = new_tint * np.abs(turned).clip(0, 2) * np.exp(1j * hue)
    colored = abs(old_tint) ** 2 / (abs(old_tint) ** 2 + GRAY**2)
    tint = colored * rotated + (1 - colored) * shifted
    if target <= mean[0]:
        level = level * (target / mean[0])
    else:
        # black stays black and white stays white
        level = level.clip(0, 1) ** (np.log(target) / np.log(mean[0].clip(1e-3, 0.999)))
    return np.stack([level, level * tint.real, level * tint.imag], -1)


def _hue_distance(lab: np.ndarray, color: np.ndarray) -> np.ndarray:
    """The angle between the hues of pixels (h, w, 3) and of a color (3,), in radians, 0 to pi."""
    a, b = color[1:]
    turned = (lab[..., 1] + 1j * lab[..., 2]) * complex(a, -b)
    return np.abs(np.angle(turned))


def _falling(x: np.ndarray, begin: float, end: float) -> np.ndarray:
    """A smooth step down: 1 up to `begin`, 0 from `end`."""
    t = ((end - x) / (end - begin)).clip(0, 1)
    return t * t * (3 - 2 * t)
