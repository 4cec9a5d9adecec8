"""Another colour for a part of the frame; light, shade and texture stay."""

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

GREY = 0.04
"""Chroma below which a colour has no hue that could be told."""

FLOOD = 3.0
"""Times the part that is as light as what was found: what is larger is not one part with it."""


@dataclass(frozen=True)
class Recolour:
    """Gives a part of the frame another colour: 'red > blue', '#c03020 > teal', or just 'blue'."""

    lightness: float = 0.5
    """How far the part becomes as light as the new colour; 0: as light as it was."""
    tolerance: float = 1.0
    """How far from the colour that is named a part may be; 2: twice as far."""
    least: float = 0.1
    """Of the pieces of that colour, those that show at least this part of what the foremost shows
    are changed too; 1: only that one; 0: all."""

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction"})

    def __post_init__(self) -> None:
        checks.fraction("lightness", self.lightness)
        checks.positive("tolerance", self.tolerance)
        checks.fraction("least", self.least)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        old, new = colours(request.instruction)
        lab = from_rgb(request.frame)
        mask = np.ones(lab.shape[:2]) if request.mask is None else request.mask
        if old is None and request.mask is not None:
            region = mask.astype(np.float64)
        else:
            if old is None:
                old = most_colourful(lab, mask)
            region = find_region(lab, old, mask, self.tolerance, self.least)
        if not region.any():
            raise InputError(
                f"recolour: nothing in the frame is like the first colour of "
                f"{request.instruction!r}; name one that is, or give a mask"
            )
        weight = region[..., None]
        other = to_rgb(dyed(lab, region, new, self.lightness))
        mixed = request.frame + weight * (other.astype(np.float64) - request.frame)
        return [np.rint(mixed).astype(np.uint8) for _ in seeds]


def colours(instruction: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Of "OLD > NEW", or of "NEW", which gives (None, NEW): OKLab (3,) each.

    Colours are CSS names ("steel blue" too) or #rrggbb. InputError: anything else.
    """
    parts = [part.strip() for part in instruction.split(">")]
    if len(parts) > 2:
        raise InputError(f"recolour: {instruction!r} is not like 'red > blue' or 'blue'")
    found = [_colour(part) for part in parts]
    return (None, found[0]) if len(found) == 1 else (found[0], found[1])


def _colour(name: str) -> np.ndarray:
    try:
        rgb = ImageColor.getrgb(name if "(" in name else name.replace(" ", ""))[:3]
        if not max(rgb) <= 255:
            raise ValueError
    except ValueError:
        raise InputError(
            f"recolour: {name!r} is no colour; give 'OLD > NEW' or 'NEW', "
            "with names such as red or steelblue, or #c03020"
        ) from None
    return from_rgb(np.array(rgb, dtype=np.uint8))


def most_colourful(lab: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """OKLab (3,): the commonest hue among the twentieth of the frame that has most chroma."""
    pixels = lab[mask > 0.5] if (mask > 0.5).any() else lab.reshape(-1, 3)
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    pixels = pixels[chroma >= np.quantile(chroma, 0.95)]
    hue, chroma = np.arctan2(pixels[:, 2], pixels[:, 1]), np.hypot(pixels[:, 1], pixels[:, 2])
    near = np.cos(np.linspace(-np.pi, np.pi, 72, endpoint=False)[:, None] - hue) > np.cos(0.25)
    return pixels[near[(near * chroma).sum(1).argmax()]].mean(0)


def find_region(
    lab: np.ndarray, colour: np.ndarray, mask: np.ndarray, tolerance: float, least: float
) -> np.ndarray:
    """(h, w) 0 to 1: how much of each pixel is of the part that has about this colour.

    A colour is first looked for by all it is; the part is then what has the hue that was found, in
    light and in shade: shading moves colours towards black, along which the hue stays.
    """
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    grey = np.hypot(*colour[1:]) < GREY
    if grey:
        near = _falling(np.abs(lightness - colour[0]), 0.05 * tolerance, 0.4 * tolerance)
        near *= _falling(chroma, 0.25 * GREY * tolerance, GREY * tolerance)
    else:
        near = _falling(_angle(lab, colour), 0.1, 0.7 * tolerance)
        apart = 0.4 * np.hypot(lightness - colour[0], chroma - np.hypot(*colour[1:]))
        near *= _falling(apart, 0.0, 0.25 * tolerance)
        near *= 1 - _falling(chroma, 0.5 * GREY, GREY)
        if near.any():
            # a faint reflection is less of a red than the red thing is
            purest = min(np.hypot(*colour[1:]), np.quantile(chroma[near > 0], 0.99))
            near *= (chroma / purest).clip(0, 1) ** 2
    near *= mask
    if near.max() < 0.05:
        return np.zeros_like(near)
    weight = (near**2)[..., None]
    found = (lab * weight).sum((0, 1)) / weight.sum()
    if grey:
        alike = _falling(np.abs(lightness - found[0]), 0.1 * tolerance, 0.3 * tolerance)
        alike *= _falling(chroma, 0.75 * GREY * tolerance, 1.5 * GREY * tolerance)
    else:
        # of the part of the colour that is not brightness
        purity = chroma / np.hypot(*found[1:]) * found[0] / lightness.clip(0.1)
        alike = _falling(_angle(lab, found), 0.25 * tolerance, 0.5 * tolerance)
        alike *= 1 - _falling(purity, 0.2 / tolerance, 0.5 / tolerance)
        alike *= 1 - _falling(chroma, 0.25 * GREY, 0.75 * GREY)
    alike *= mask
    region = alike * _pieces_like(near * (alike > 0.5), alike > 0.5, least)
    if grey:
        return region
    # a navy ground behind a blue thing is no shade of it: shade is less than what is in light
    light = alike * _falling(np.abs(lightness - found[0]), 0.15 * tolerance, 0.25 * tolerance)
    light *= _pieces_like(near * (light > 0.5), light > 0.5, least)
    return region if region.sum() <= FLOOD * light.sum() else light


def _pieces_like(near: np.ndarray, core: np.ndarray, least: float) -> np.ndarray:
    """1 for the piece of `core` with most of the colour, and those with `least` as much; else 0."""
    # in blocks: checks and folds of one garment lie about this near each other
    block = max(1, round(min(core.shape) / 80))
    height, width = (-(-n // block) for n in core.shape)

    def blocks(values: np.ndarray) -> np.ndarray:
        rest = [(0, n * block - m) for n, m in zip((height, width), values.shape, strict=True)]
        return np.pad(values, rest).reshape(height, block, width, block).sum((1, 3))

    labels = label_regions(blocks(core) > 0)
    much = np.bincount(labels.ravel(), blocks(near).ravel())
    much[0] = 0
    kept = (much > 0) & (much >= least * much.max())
    # what fades out beyond the core belongs to it
    kept = dilate(kept[labels], 1)
    return kept.repeat(block, 0).repeat(block, 1)[: core.shape[0], : core.shape[1]]


def dyed(lab: np.ndarray, region: np.ndarray, new: np.ndarray, lightness: float) -> np.ndarray:
    """The picture in OKLab (h, w, 3) with the colour that the region has on average made `new`.

    Colours are (a + ib) / L, which light and shade do not change. They are turned and stretched
    about the average, so that what is grey within a coloured part stays grey; a grey part is dyed.
    """
    total = region.sum()
    mean = (lab * region[..., None]).sum((0, 1)) / total
    tint = (lab[..., 1] + 1j * lab[..., 2]) / lab[..., 0].clip(0.05)
    level, target = lab[..., 0], mean[0] + lightness * (new[0] - mean[0])
    # neither more colourful nor purer than the new colour is
    wanted = complex(*new[1:]) / max(new[0], target, 0.05)
    old = complex(*mean[1:]) / max(mean[0], 0.05)
    dyed_tint = wanted + (tint - old)
    turned = tint * old.conjugate() / max(abs(old) ** 2, 1e-12)
    # a hue that is stretched would show the camera's noise
    hue = np.angle(turned) * min(1.0, abs(old) / max(abs(wanted), 1e-12))
    tint = wanted * np.abs(turned).clip(0, 2) * np.exp(1j * hue)
    coloured = abs(old) ** 2 / (abs(old) ** 2 + GREY**2)
    tint = coloured * tint + (1 - coloured) * dyed_tint
    if target <= mean[0]:
        level = level * (target / mean[0])
    else:
        # black stays black and white stays white
        level = level.clip(0, 1) ** (np.log(target) / np.log(mean[0].clip(1e-3, 0.999)))
    return np.stack([level, level * tint.real, level * tint.imag], -1)


def _angle(lab: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Between hues, in radians, 0 to pi."""
    a, b = colour[1:]
    turned = (lab[..., 1] + 1j * lab[..., 2]) * complex(a, -b)
    return np.abs(np.angle(turned))


def _falling(x: np.ndarray, begin: float, end: float) -> np.ndarray:
    """1 up to `begin`, 0 from `end`, smooth between."""
    t = ((end - x) / (end - begin)).clip(0, 1)
    return t * t * (3 - 2 * t)
