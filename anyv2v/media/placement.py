"""Putting edited frames back into the full-size frames that they were made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.media.image import FITS, as_frames, crop_box, crop_size
from anyv2v.media.proportions import inscribed_size

FEATHER = 1 / 64
"""Width of the seam around a crop, as a part of the shorter side of the full-size picture."""


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a fitted frame lie in the full-size picture; undoes `fit_frame`."""

    own: tuple[int, int]
    """(width, height) of the full-size picture."""
    model: tuple[int, int]
    """(width, height) of the fitted, edited frame."""
    fit: str
    """How the picture was fitted, one of `FITS`."""

    def __post_init__(self):
        object.__setattr__(self, "own", checks.size(self.own))
        object.__setattr__(self, "model", checks.size(self.model))
        checks.one_of("fit", self.fit, FITS)

    def restore(
        self, edited: np.ndarray, original: np.ndarray, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the full-size picture with the edit in its place, uint8 RGB of `own`.

        edited: uint8 RGB (h, w, 3) of the size `model`. original: uint8 RGB of the size `own`.
        mask: (h, w) of the size `model`, 0 where the original stays and 1 where the edit counts;
        None is 1 everywhere.

        The edit is resized by Lanczos and the mask bilinearly, each to the pixels that it came
        from. Where the result of the mask is 0, the original stays to the bit. What "crop" cut away
        stays the original's too, and the border to it is blended over 1/64 of the shorter side; the
        bars of "pad" are removed. Where no size changes, no pixel is resampled. Raises InputError
        for arrays of other sizes or dtypes.
        """
        (edited,), (original,) = (as_frames(np.asarray(x)[None]) for x in (edited, original))
        _check("edited", edited, self.model)
        _check("original", original, self.own)
        region = self._region()
        if region[0] >= region[2] or region[1] >= region[3]:
            return original.copy()
        weight = self._feather(region)
        if mask is not None:
            mask = np.asarray(mask, np.float32)
            _check("mask", mask, self.model)
            weight *= self._resized(mask, Image.Resampling.BILINEAR)
        picture = self._resized(edited, Image.Resampling.LANCZOS)
        result = Image.fromarray(original)
        # in steps of 1/255, which is as fine as levels are, and many times faster than floats
        levels = Image.fromarray((weight.clip(0, 1) * 255).round().astype(np.uint8))
        result.paste(picture, region[:2], levels)
        return np.array(result)

    def _axes(self) -> list[tuple[int, int, int, int]]:
        """For x and y: (own, resized, begin, length).

        The picture's side is scaled from `own` to `resized`, and the fitted frame shows `length`
        pixels of it, without bars, from `begin` on.
        """
        resized, begin, length = self.model, (0, 0), self.model
        if self.fit == "crop":
            resized = crop_size(self.own, self.model)
            begin = crop_box(resized, self.model)[:2]
        elif self.fit == "pad":
            resized = length = inscribed_size(self.own, self.model)
        return list(zip(self.own, resized, begin, length, strict=True))

    def _bars(self) -> tuple[int, int]:
        """Width of the left bar and height of the upper one, as in `letterbox`."""
        (_, _, _, width), (_, _, _, height) = self._axes()
        return (self.model[0] - width) // 2, (self.model[1] - height) // 2

    def _region(self) -> tuple[int, int, int, int]:
        """The pixels of the picture that lie wholly within the fitted frame: left, top, ..."""
        begins = [-(-begin * own // resized) for own, resized, begin, _ in self._axes()]
        ends = [(begin + side) * own // resized for own, resized, begin, side in self._axes()]
        return begins[0], begins[1], ends[0], ends[1]

    def _resized(self, array: np.ndarray, resampling: Image.Resampling) -> Image.Image:
        """What is seen of a fitted frame or mask in the region, at the region's size."""
        # without the bars first, which resizing would draw into the picture
        (left, top), axes, region = self._bars(), self._axes(), self._region()
        image = Image.fromarray(array[top : top + axes[1][3], left : left + axes[0][3]])
        size = region[2] - region[0], region[3] - region[1]
        if all(own == resized for own, resized, _, _ in axes):
            (_, _, x, _), (_, _, y, _) = axes
            return image.crop((region[0] - x, region[1] - y, region[2] - x, region[3] - y))
        # rounding must not lead beyond the frame
        box = [
            min(at * resized / own - begin, length)
            for at, (own, resized, begin, length) in zip(region, axes * 2, strict=True)
        ]
        return image.resize(size, resampling, (box[0], box[1], box[2], box[3]))

    def _feather(self, region: tuple[int, int, int, int]) -> np.ndarray:
        """Weights (h, w) of a region, below 1 along the sides that are none of the picture's."""
        width = max(1, round(FEATHER * min(self.own)))
        ramps = []
        for own, begin, end in zip(self.own, region[:2], region[2:], strict=True):
            inside = np.arange(end - begin, dtype=np.float32) + 0.5
            ramp = np.ones_like(inside)
            if begin > 0:
                ramp = np.minimum(ramp, inside / width)
            if end < own:
                ramp = np.minimum(ramp, inside[::-1] / width)
            ramps.append(ramp)
        return np.outer(ramps[1], ramps[0])


def _check(name: str, array: np.ndarray, size: tuple[int, int]) -> None:
    if array.shape[:2] != size[::-1]:
        height, width = array.shape[:2]
        raise InputError(f"{name}: it is {width}x{height}, and must be {size[0]}x{size[1]}")
