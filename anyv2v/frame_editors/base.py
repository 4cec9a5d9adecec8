"""The interface of a frame editor, and the request that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


@dataclass(frozen=True)
class FrameRequest:
    """A frame and the edit that is asked for; an editor uses the fields that it needs."""

    frame: np.ndarray
    """The frame, (h, w, 3) uint8 RGB."""
    instruction: str = ""
    """What to do with the frame, or what the result is to show, depending on the editor."""
    reference: np.ndarray | None = None
    """A picture of the style, subject or structure to be taken over, (h', w', 3) uint8 RGB."""
    mask: np.ndarray | None = None
    """Where the frame may change, (h, w) float32, 0 to 1. The caller restores the rest."""


class FrameEditor(Protocol):
    """Edits frames. An implementation is a frozen dataclass, whose fields are its options.

    Options have defaults, except for those without which the editor cannot run, such as `weights`.
    Memory that a call takes, on the host and on the GPU, is free again when it returns.
    """

    needs: ClassVar[frozenset[str]]
    """The fields of a request that must be given, out of "instruction", "reference" and "mask"."""

    @property
    def uses(self) -> frozenset[str]:
        """The inputs that change the result, out of "instruction", "reference" and "seed".

        An editor without this property is taken to use all three. Every editor honors masks.
        """
        ...

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns one edited frame for each seed, (h, w, 3) uint8 RGB, of the size of the frame.

        InputError: the editor cannot make sense of the request.
        """
        ...
