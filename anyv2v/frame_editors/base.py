"""`FrameEditor`, the interface of a frame editor, and `FrameRequest`, what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


@dataclass(frozen=True)
class FrameRequest:
    """A frame and the edit that is asked for. Editors ignore the fields that they do not need."""

    frame: np.ndarray
    """The frame to be edited, (h, w, 3) uint8 RGB."""
    instruction: str = ""
    """What to do with the frame, or what the result is to show, depending on the editor."""
    reference: np.ndarray | None = None
    """A picture whose style, subject or colors the frame is to take on, (h', w', 3) uint8 RGB."""
    mask: np.ndarray | None = None
    """Where the frame may change, (h, w) float32, 0 to 1; None means everywhere. An editor may
    change the rest as well, because its caller restores it.
    """


class FrameEditor(Protocol):
    """The interface of frame editors. An editor is a frozen dataclass whose fields are its options.

    Options have defaults, except for those without which the editor cannot run, such as `weights`.
    A call frees all memory that it takes, on the host and on the GPU, when it returns.
    """

    needs: ClassVar[frozenset[str]]
    """The fields of `FrameRequest` that the editor cannot do without, other than `frame`: a subset
    of "instruction", "reference" and "mask"."""

    @property
    def uses(self) -> frozenset[str]:
        """Which of "instruction", "reference" and "seed" change the editor's result.

        An editor without this property is assumed to use all three. The mask is not listed, because
        it affects the result of every editor.
        """
        ...

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns one edited frame for each seed, (h, w, 3) uint8 RGB of the size of the frame.

        seeds: seeds of the random numbers. Raises InputError if the editor cannot carry out the
        request.
        """
        ...
