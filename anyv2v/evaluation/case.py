"""`Case`: an edited clip with what is known of it, and what several metrics share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from anyv2v.errors import InputError
from anyv2v.metrics.flow import flows
from anyv2v.protection.mask import Protection

COARSE = 128
"""Least shorter side in pixels at which a mask that is found has cells of more than a pixel."""


@dataclass(frozen=True, eq=False)
class Case:
    """An edited clip with what is known of it. Clips are uint8 RGB (f, h, w, 3), of one shape.

    Raises InputError if shapes do not fit, or if the clip has but one frame.
    """

    edited: np.ndarray
    """The edited clip, of at least two frames."""
    source: np.ndarray | None = None
    """The clip before the edit; None: it is not known."""
    truth: np.ndarray | None = None
    """The clip after the edit as it should be; None: it is not known."""
    references: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Index of a frame -> the edited frame that the edit was given, uint8 RGB (h, w, 3)."""
    mask: np.ndarray | None = None
    """A given mask, float32 (h, w) or (f, h, w), 0 where the edit may change nothing; None: it is
    found, see `masks`."""

    def __post_init__(self):
        clips = {"source": self.source, "truth": self.truth}
        for name, clip in clips.items():
            if clip is not None and clip.shape != self.edited.shape:
                raise InputError(f"{name}: {clip.shape} is not the edit's {self.edited.shape}")
        for index, frame in self.references.items():
            if frame.shape != self.edited.shape[1:]:
                raise InputError(f"frame {index}: {frame.shape} is not {self.edited.shape[1:]}")
        if self.mask is not None and self.mask.shape[-2:] != self.edited.shape[1:3]:
            raise InputError(f"mask: {self.mask.shape} does not fit {self.edited.shape}")
        if len(self.edited) < 2:
            raise InputError("1 frame is no clip; at least 2 are needed")

    def like(self, edited: np.ndarray) -> Case:
        """Returns the same case of another edited clip; what does not depend on it is not redone.

        That is the source's flow, and the mask if the edited frame 0 is given.
        """
        other = replace(self, edited=edited)
        kept = ["source_flows", *(["masks", "background"] if 0 in self.references else [])]
        vars(other).update({name: vars(self)[name] for name in kept if name in vars(self)})
        return other

    @property
    def mask_name(self) -> str:
        """What the mask is called in the names of metrics."""
        if self.mask is not None:
            return "given mask"
        return "auto mask" if 0 in self.references else "auto mask of frame 0"

    def need(self, name: str) -> np.ndarray:
        """Returns the clip "edited", "source" or "truth"; raises InputError if it is not known."""
        clip = getattr(self, name)
        if clip is None:
            raise InputError(f"no {name} is known")
        return clip

    @cached_property
    def masks(self) -> np.ndarray:
        """What the edit may change: float32 (f, h, w), 1 where it may and 0 where it may not.

        A mask that is not given is that of `Protection`, without what the edited clip itself
        changes, so that no edit can excuse its own errors: the places that the edited reference
        frames change are carried along the source by patches. The reference is frame 0 of the
        edited clip where none is known. Raises InputError if there is no source.
        """
        shape = self.edited.shape[:3]
        if self.mask is not None:
            return np.broadcast_to(self.mask, shape)
        source = self.need("source")
        references = self.references if 0 in self.references else {0: self.edited[0]}
        # cells of 2x2 pixels, of the usual autoencoders; small clips are divided into pixels
        coarse = min(shape[1:]) >= COARSE and shape[1] % 2 == shape[2] % 2 == 0
        given = source[[*references]], np.stack([*references.values()])
        protection = Protection(*given, 8 if coarse else 4)
        return np.stack([protection.mask(frame, frame, i) for i, frame in enumerate(source)])

    @cached_property
    def background(self) -> np.ndarray:
        """Where the clip should stay the source: bool (f, h, w), where the mask is 0.

        Raises InputError if there is no such pixel after frame 0, or no source.
        """
        region = self.masks == 0
        if not region[1:].any():
            raise InputError("the edit may change everything: there is no background")
        return region

    @cached_property
    def source_flows(self) -> np.ndarray:
        """The source's flow from each frame to the next, see `metrics.flow.flows`.

        Raises InputError if there is no source, or no OpenCV.
        """
        return flows(self.need("source"))

    @cached_property
    def edited_flows(self) -> np.ndarray:
        """The same for the edited clip. Raises InputError if there is no OpenCV."""
        return flows(self.edited)
