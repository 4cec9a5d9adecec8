"""T2I-Adapter (arXiv 2302.08453): a prompt, along the edges, depth or colors of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.conditions import Kind, adapter_residuals, check_condition
from anyv2v.frame_editors.painting import paint_each, working_frame
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.stable_diffusion.loading import load
from anyv2v.stable_diffusion.painting import Painting


@dataclass(frozen=True)
class T2IAdapter:
    """Paints the instruction along the frame's edges, depth or colors; Stable Diffusion 1.5."""

    weights: str
    """The folder that `anyv2v convert` made of Stable Diffusion 1.5."""
    adapter: str
    """The folder that `anyv2v convert` made of a T2I-Adapter, full or light."""
    kind: Kind = "canny"
    """The kind of condition that the adapter was trained on."""
    condition: str = ""
    """A picture of that kind, needed for sketch and depth; the others can be made of the frame."""
    scale: float = 1.0
    """Weight of the condition."""
    strength: float = 1.0
    """Part of the steps that are run over the noised frame, 0 to 1; 1 begins with noise alone."""
    guidance: float = 7.5
    """Scale of classifier-free guidance with the instruction."""
    steps: int = 50
    negative: str = ""
    """Negative prompt."""
    size: int = 512
    """Length of the frame's longer side while it is painted, in pixels."""
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction", "seed"})

    def __post_init__(self):
        self._painting()
        checks.finite("scale", self.scale)
        checks.whole("size", self.size, 8, 2**14)
        check_condition(self.kind, self.condition)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns a painted frame for each seed; see `FrameEditor`."""
        if not request.instruction.strip():
            raise InputError("T2IAdapter needs an instruction: what is to be seen")
        device = choose_device(self.device)
        model = load(self.weights, device, choose_dtype(self.dtype, device), in_channels=4)
        frame = working_frame(request.frame, self.size, model)
        residuals = adapter_residuals(
            self.adapter, self.kind, self.condition, self.scale, frame, model
        )
        return paint_each(model, request, frame, seeds, self._painting(), residuals=residuals)

    def _painting(self) -> Painting:
        return Painting(self.steps, self.strength, self.guidance, self.negative)
