"""IP-Adapter (arXiv 2308.06721): gives a frame the style or subject of a reference picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.conditions import Kind, adapter_residuals, check_condition
from anyv2v.frame_editors.painting import paint_each, working_frame
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.stable_diffusion.adapters import load_ip_adapter
from anyv2v.stable_diffusion.ip_adapter import SITES, image_context, scales
from anyv2v.stable_diffusion.loading import load
from anyv2v.stable_diffusion.painting import Painting
from anyv2v.stable_diffusion.unet import cross_sites


@dataclass(frozen=True)
class IPAdapter:
    """Paints the frame in the style, or with the subject, of a reference; Stable Diffusion 1.5."""

    weights: str
    """The folder that `anyv2v convert` made from Stable Diffusion 1.5."""
    adapter: str
    """The folder that `anyv2v convert` made from an IP-Adapter and its CLIP image encoder."""
    blocks: Literal["all", "style", "style+layout"] = "all"
    """The UNet's blocks that attend to the reference: all of them, or those with which InstantStyle
    (arXiv 2404.02733) takes over its style alone, or its style and layout.
    """
    scale: float = 1.0
    """Weight of the reference, 0 or more."""
    strength: float = 0.6
    """Fraction of the steps that are run, 0 to 1. They start from the frame with noise added: the
    smaller the fraction, the less noise. 1 starts from noise alone.
    """
    guidance: float = 7.5
    """Scale of classifier-free guidance with the instruction and the reference."""
    steps: int = 50
    """Number of sampling steps of a full run, 1 to 999; `strength` runs a fraction of them."""
    negative: str = ""
    """The negative prompt: what the result is not to show."""
    t2i: str = ""
    """The folder of a T2I-Adapter that keeps the frame's structure; "" for none."""
    kind: Kind = "canny"
    """The kind of condition picture that the T2I-Adapter was trained on."""
    condition: str = ""
    """The path of a picture of the kind `kind`; "" makes one from the frame, which is not possible
    for sketch and depth.
    """
    condition_scale: float = 1.0
    """Weight of the condition picture."""
    size: int = 512
    """Length of the frame's longer side while it is painted, in pixels."""
    device: str | torch.device | None = None
    """Where the model runs, such as "cuda:1"; None uses the GPU if there is one, else the CPU."""
    dtype: torch.dtype | None = None
    """Floating-point type of the model; None uses float16 on a GPU and float32 on the CPU."""

    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    uses: ClassVar[frozenset[str]] = frozenset({"instruction", "reference", "seed"})

    def __post_init__(self):
        self._painting()
        scales(self.blocks, self.scale)
        checks.finite("condition_scale", self.condition_scale)
        checks.whole("size", self.size, 8, 2**14)
        if self.t2i:
            check_condition(self.kind, self.condition)
        elif (self.condition, self.condition_scale) != ("", 1.0):
            raise InputError("condition and condition_scale have no effect without t2i")

    def __call__(self, request: FrameRequest, seeds: Sequence[int]) -> list[np.ndarray]:
        """Returns a painted frame for each seed; see `FrameEditor`.

        Raises InputError if there is no reference, or if the weights of a model cannot be loaded or
        do not fit the others; NotFiniteError if the model produces infinities or NaN.
        """
        if request.reference is None:
            raise InputError("IPAdapter needs a reference: a picture of the style or subject")
        device = choose_device(self.device)
        dtype = choose_dtype(self.dtype, device)
        adapter, tokens = load_ip_adapter(self.adapter, request.reference, device, dtype)
        model = load(self.weights, device, dtype, in_channels=4)
        unet = model.unet.config
        expected = adapter.config.level_channels, adapter.config.context_dim
        same_sites = set(cross_sites(model.unet)) == set(SITES)
        if expected != (unet.level_channels, unet.context_dim) or not same_sites:
            raise InputError(
                f"{self.adapter}: is for widths {expected[0]} and a context of {expected[1]}; "
                f"{self.weights} has {unet.level_channels} and {unet.context_dim}, "
                "or other attentions"
            )
        with torch.no_grad():
            image = image_context(adapter.read(tokens, unet.heads), scales(self.blocks, self.scale))
        frame = working_frame(request.frame, self.size, model)
        residuals = []
        if self.t2i:
            residuals = adapter_residuals(
                self.t2i, self.kind, self.condition, self.condition_scale, frame, model
            )
        return paint_each(model, request, frame, seeds, self._painting(), image, residuals)

    def _painting(self) -> Painting:
        return Painting(self.steps, self.strength, self.guidance, self.negative)
