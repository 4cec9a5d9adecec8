"""`Protection`: which pixels of an edited clip come from the edit, and which from the source.

The mask of a frame is made in cells, each a quarter of a latent wide, or a pixel if that is larger:

changed    cells of the reference frames (frame 0, or all keyframes) where source and edit differ
carried    each cell of the frame has the value of the most alike patch of the references' sources
differing  cells where the edited frame clearly differs from the source's frame
mask       carried or differing, grown by one cell, with soft borders

Of what is unchanged or differing, only squares of at least a latent count.

The edited clip went through the autoencoder, so outside the edit it differs from the source a
little everywhere. The composition of pixels removes all of that, at no cost of the network. Masks
in the space of latents cannot, because there everything still has to be decoded.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from anyv2v import checks
from anyv2v.correspondence.patches import match_patches
from anyv2v.errors import InputError
from anyv2v.media.image import as_frames

CLEAR = 8
"""Largest difference, in levels, of a pixel that an edited frame left as it was."""
CLEAR_IF_ENCODED = 16
"""The same if no pixel is exactly the source's, as after an autoencoder or a lossy file."""
CONTRAST = 0.2
"""Share of the contrast around a pixel that is added to `CLEAR_IF_ENCODED`, because autoencoders
and lossy files err most at edges."""
ENCODED = 6
"""Most that pixels which look alike differ by on average, in levels, after an autoencoder or in a
lossy file; of 80 encoded frames 77 stay below. Alike pixels that differ by more were all edited, as
by a style that moves every color a little."""
LEAST_UNCHANGED = 1 / 16
"""Share of unchanged cells in the references below which everything counts as changed."""
DIFFERING = 32
"""Difference of the edit from the source, in levels, above which a cell counts as edited."""
THICKNESS = 4
"""Cells along each side of the smallest square that counts, of differing and of unchanged cells:
one latent. Thinner differences are errors of the autoencoder and the network at edges, because what
a network draws is about a latent wide. Thinner unchanged regions are chance: old and new colors
that are alike."""
SOFTNESS = 1.0
"""Standard deviation of the Gaussian that softens the borders, in cells."""
NEGLIGIBLE = 0.5 / 255
"""Weight that changes no level of 8 bits; smaller weights of either side are set to 0."""


def compose(source: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the edited frame where the mask is 1 and the source's where it is 0, to the bit.

    source, edited: uint8 RGB (..., h, w, 3), as the result. mask: float32 (..., h, w), or (f, 1, 1)
    with one value for each frame, 0 to 1; between these the levels are mixed, and rounded.
    """
    base = source.astype(np.float32)
    return np.rint(base + mask[..., None] * (edited - base)).astype(np.uint8)


def changed_pixels(source: np.ndarray, edited: np.ndarray, reach: int = 1) -> np.ndarray:
    """Returns where an edit of a frame changed it: bool (h, w).

    source, edited: the frame before and after the edit, uint8 RGB (h, w, 3). reach: how many pixels
    around a pixel its contrast is taken from.

    If most of the pixels that look alike are exactly the source's, the largest difference of a
    pixel's colors must be above `CLEAR` (8 levels). Otherwise the edited frame passed through an
    autoencoder or a lossy file as a whole, and the difference must be above `CLEAR_IF_ENCODED` (16)
    plus `CONTRAST` (a fifth) of the range of the source's levels around the pixel. If the pixels
    that look alike differ by more than that explains, see `ENCODED`, all are changed.
    """
    difference = np.abs(source.astype(np.int16) - edited).max(-1)
    alike = difference <= CLEAR_IF_ENCODED
    if 2 * np.count_nonzero(difference == 0) > np.count_nonzero(alike):
        return difference > CLEAR
    if difference[alike].sum() > ENCODED * np.count_nonzero(alike):
        return np.ones_like(alike)
    window = (2 * reach + 1, 2 * reach + 1, 1)
    highest = ndimage.maximum_filter(source, window, mode="nearest").astype(np.int16)
    lowest = ndimage.minimum_filter(source, window, mode="nearest")
    return difference > CLEAR_IF_ENCODED + CONTRAST * (highest - lowest).max(-1)


class Protection:
    """Makes the masks of a clip's frames, one by one, from its edited reference frames.

    An object holds the references alone, so that one serves a clip of any length.
    """

    def __init__(
        self,
        sources: np.ndarray,
        edited: np.ndarray,
        factor: int,
        mask: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        """Takes the reference frames before and after the edit: uint8 RGB (n, h, w, 3) both.

        They are frame 0, or all keyframes. factor: pixels per latent along each axis. mask: a given
        mask (h, w), or one for each frame of the clip, (f, h, w), of 0 to 1, which is used as it is
        in place of all that is described here. device: where patches are matched.

        Raises InputError if sizes or dtypes do not fit.
        """
        sources, edited = as_frames(sources), as_frames(edited)
        factor = checks.whole("factor", factor)
        if sources.shape != edited.shape:
            raise InputError(f"edited: {edited.shape} is not the shape of sources, {sources.shape}")
        self._size = height, width = sources.shape[1:3]
        self._cell = cell = max(1, factor // 4)
        self._given = None if mask is None else _given(mask, self._size)
        if self._given is not None:
            return
        if height % cell or width % cell:
            raise InputError(f"factor: {factor} does not fit frames of {width}x{height}")
        pairs = zip(sources, edited, strict=True)
        changed = np.stack([changed_pixels(a, b, reach=cell) for a, b in pairs])
        cells = np.asarray(_split(changed, cell).any((2, 4)))
        unchanged = np.stack([_without_thin(~frame) for frame in cells])
        self._everything = bool(unchanged.mean() < LEAST_UNCHANGED)
        self._changed = torch.from_numpy(~unchanged).to(device)
        self._sources = torch.from_numpy(_cells(sources, cell)).to(device)

    @property
    def changes_everything(self) -> bool:
        """Whether nothing is protected, because the edit changed all of the references.

        All masks are 1 then. An example is an edit of the style.
        """
        return self._given is None and self._everything

    def mask(self, source: np.ndarray, edited: np.ndarray, index: int = 0) -> np.ndarray:
        """Returns the mask of one frame: float32 (h, w), 1 for the edit and 0 for the source.

        source, edited: the frame of the clip before and after the edit, uint8 RGB (h, w, 3), of the
        size of the references. index: the number of the frame, of which only a given mask with a
        mask per frame makes use. Raises InputError if sizes do not fit.

        A frame of 512x512 with 8 pixels per latent takes 0.4 s on one CPU thread.
        """
        for name, frame in (("source", source), ("edited", edited)):
            if frame.dtype != np.uint8 or frame.shape != (*self._size, 3):
                raise InputError(
                    f"{name}: {frame.dtype} {frame.shape} is not uint8 {(*self._size, 3)}"
                )
        if self._given is not None:
            if self._given.ndim == 2:
                return self._given
            return self._given[checks.whole("index", index, 0, len(self._given) - 1)]
        if self._everything:
            return np.ones(self._size, np.float32)
        ours, theirs = (_cells(x[None], self._cell)[0] for x in (source, edited))
        matches = match_patches(torch.from_numpy(ours).to(self._sources.device), self._sources)
        differing = np.abs(ours.astype(np.int16) - theirs).max(-1) > DIFFERING
        carried = matches.take(self._changed).cpu().numpy()
        return _soft(carried | _without_thin(differing), self._cell)


def _given(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Checks a given mask and returns it as float32."""
    masks = np.asarray(mask, np.float32)
    if masks.ndim not in (2, 3) or masks.shape[-2:] != size or not masks.size:
        height, width = size
        raise InputError(f"mask: {masks.shape} is not (h, w) or (f, h, w) with {height}x{width}")
    if not (masks.min() >= 0 and masks.max() <= 1):
        raise InputError(f"mask: values of {masks.min():g} to {masks.max():g} are not of 0 to 1")
    return masks


def _without_thin(cells: np.ndarray) -> np.ndarray:
    """Keeps of a mask, bool (h, w), the squares of `THICKNESS` that are full; the rest is False."""
    return np.asarray(ndimage.binary_opening(cells, np.ones((THICKNESS, THICKNESS))))


def _soft(edited: np.ndarray, cell: int) -> np.ndarray:
    """Grows a mask of cells by one, softens its borders, and enlarges it to pixels, float32."""
    grown = ndimage.maximum_filter(edited, 3, mode="nearest").astype(np.float32)
    mask = torch.from_numpy(ndimage.gaussian_filter(grown, SOFTNESS, mode="nearest"))
    if cell > 1:
        mask = F.interpolate(mask[None, None], scale_factor=float(cell), mode="bilinear")[0, 0]
    mask[mask < NEGLIGIBLE], mask[mask > 1 - NEGLIGIBLE] = 0, 1
    return mask.numpy()


def _cells(frames: np.ndarray, cell: int) -> np.ndarray:
    """Means of cells of uint8 (n, h, w, 3), rounded: uint8 (n, h / cell, w / cell, 3)."""
    if cell == 1:
        return frames
    return np.rint(_split(frames, cell).mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _split(values: np.ndarray, cell: int) -> np.ndarray:
    """(n, h, w, ...) as (n, h / cell, cell, w / cell, cell, ...)."""
    n, height, width = values.shape[:3]
    return values.reshape(n, height // cell, cell, width // cell, cell, *values.shape[3:])
