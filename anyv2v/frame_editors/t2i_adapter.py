"""T2I-Adapter (arXiv 2302.08453): paints a prompt along the edges, depth or colors of a frame."""

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
    """The folder that `anyv2v convert` made from Stable Diffusion 1.5."""
    adapter: str
    """The folder that `anyv2v convert` made from a T2I-Adapter, full or light."""
    kind: Kind = "canny"
    """The kind of condition picture that the adapter was trained on."""
    condition: str = ""
    """The path of a picture of the kind `kind`; "" makes one from the frame, which is not possible
    for sketch and depth.
    """
    scale: float = 1.0
    """Weight of the condition picture."""
    strength: float = 1.0
    """Fraction of the steps that are run, 0 to 1. They start from the frame with noise added: the
    smaller the fraction, the less noise. 1 starts from noise alone.
    """
    guidance: float = 7.5
    """Scale of classifier-free guidance with the instruction."""
    steps: int = 50
    """Number of sampling steps of a full run, 1 to 999; `strength` runs a fraction of them."""
    negative: str = ""
    """The negative prompt: what the result is not to show."""
    size: int = 512
    """Length of the frame's longer side while it is painted, in pixels."""
    device: str | torch.device | None = None
    """Where the model runs, such as "cuda:1"; None uses the GPU if there is one, else the CPU."""
    dtype: torch.dtype | None = None
    """Floating-point type of the model; None uses float16 on a GPU and float32 on the CPU."""

    needs: ClassVar[frozenset[str]] = frozenset({"instruction"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction", "seed"})

    def __post_init__(self):
        self._painting()
        checks.finite("scale", self.scale)
        checks.whole("size", self.size, 8, 2**14)
        check_condition(self.kind, self.condition)

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns a painted frame for each seed; see `FrameEditor`.

        Raises InputError if there is no instruction, or if the weights of a model cannot be loaded
        or do not fit the other's; NotFiniteError if the model produces infinities or NaN.
        """
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
