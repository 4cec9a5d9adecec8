"""What an editor of pictures is given, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


@dataclass(frozen=True)
class FrameRequest:
    """One picture and what is to become of it; an editor takes what it needs of this."""

    frame: np.ndarray
    """(h, w, 3) uint8 RGB."""
    instruction: str = ""
    """What to do with it, or what it is to show, as the editor has it."""
    reference: np.ndarray | None = None
    """(h', w', 3) uint8 RGB: a picture of the style, subject or structure that is wanted."""
    mask: np.ndarray | None = None
    """(h, w) float32, 0 to 1: where it may change. What lies outside is put back afterwards."""


class FrameEditor(Protocol):
    """Edits pictures. An implementation is a frozen dataclass; its fields are its options.

    The options have defaults, but for what it cannot do without, such as `weights`. What a call
    needs of memory and of the GPU is free again when it returns.
    """

    needs: ClassVar[frozenset[str]]
    """Of "instruction", "reference" and "mask", those that have to be given."""

    @property
    def uses(self) -> frozenset[str]:
        """Of "instruction", "reference" and "seed", those that change what it makes.

        May be left out: then it is taken for all. Masks hold for every editor.
        """
        ...

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """A candidate for each seed, (h, w, 3) uint8 RGB, as large as the frame.

        InputError: a request that it cannot make sense of.
        """
        ...
