"""T2I-Adapter (arXiv 2302.08453): a prompt, along the edges, depth or colours of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyv2v import checks
from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.instruct_pix2pix import working_size
from anyv2v.media.image import fit_frame, read_image, to_frames, to_pixels
from anyv2v.runtime.device import choose_device, choose_dtype
from anyv2v.stable_diffusion.adapters import load_t2i_adapter
from anyv2v.stable_diffusion.loading import StableDiffusion, load
from anyv2v.stable_diffusion.painting import Painting, paint
from anyv2v.stable_diffusion.unet import ImageContext

Kind = Literal["canny", "sketch", "depth", "colour"]
"""What a condition shows: white edges or strokes on black; depth, near is white; patches of colour.
"""

GRADIENTS = 100, 200
"""Canny's thresholds, for 8 bits: edges are above the second, or above the first and touch one."""
PATCH = 64
"""Pixels of a patch of colour, both ways."""


@dataclass(frozen=True)
class T2IAdapter:
    """Paints the instruction along the frame's edges, depth or colours; Stable Diffusion 1.5."""

    weights: str
    """The folder that `anyv2v convert` made of Stable Diffusion 1.5."""
    adapter: str
    """The folder that `anyv2v convert` made of a T2I-Adapter, full or light."""
    kind: Kind = "canny"
    """What the adapter was trained on."""
    condition: str = ""
    """A picture of that kind, for sketch and depth; the others can be made of the frame."""
    scale: float = 1.0
    """How much the condition counts."""
    strength: float = 1.0
    """How much of the frame itself goes: below 1 it is painted over, 1 begins with noise."""
    guidance: float = 7.5
    """How much the instruction counts."""
    steps: int = 50
    negative: str = ""
    """What is not to be seen."""
    size: int = 512
    """Pixels of the frame's longer side while it is painted."""
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
        if not request.instruction.strip():
            raise InputError("T2IAdapter needs an instruction: what is to be seen")
        device = choose_device(self.device)
        model = load(self.weights, device, choose_dtype(self.dtype, device), channels_in=4)
        frame = working_frame(request.frame, self.size, model)
        residuals = features(self.adapter, self.kind, self.condition, self.scale, frame, model)
        return painted(model, request, frame, seeds, self._painting(), residuals=residuals)

    def _painting(self) -> Painting:
        return Painting(self.steps, self.strength, self.guidance, self.negative)


def working_frame(frame: np.ndarray, size: int, model: StableDiffusion) -> np.ndarray:
    """A frame (h, w, 3) as it is painted: its longer side `size` pixels, or about that."""
    h, w = frame.shape[:2]
    return fit_frame(frame, working_size((w, h), size, model.vae.config.factor), "stretch")


def painted(
    model: StableDiffusion,
    request: FrameRequest,
    frame: np.ndarray,
    seeds: Sequence[int],
    how: Painting,
    image: ImageContext | None = None,
    residuals: Sequence[Tensor] = (),
) -> list[np.ndarray]:
    """A candidate for each seed, painted over `frame`, as large as the request's own."""
    (h, w), config = frame.shape[:2], model.vae.config
    shape = 1, config.latent_channels, h // config.factor, w // config.factor
    found = []
    for seed in seeds:
        # drawn on the CPU, so that a seed means the same everywhere
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        pixels = to_pixels(frame[None])
        out = paint(model, pixels, request.instruction, noise, how, image, residuals)
        size = request.frame.shape[1::-1]
        found.append(fit_frame(to_frames(out)[0], size, "stretch"))
    return found


def check_condition(kind: str, condition: str) -> None:
    """InputError: a kind that cannot be made of the frame, and no condition."""
    checks.one_of("kind", kind, Kind.__args__)
    if kind in ("sketch", "depth") and not condition:
        raise InputError(f"kind {kind}: needs the option condition, a picture of that kind")


@torch.no_grad()
def features(
    folder: str, kind: str, condition: str, scale: float, frame: np.ndarray, model: StableDiffusion
) -> list[Tensor]:
    """What an adapter makes of a condition, times scale: `residuals` of `UNet2D`, of one row.

    condition: the path of a picture, or "" for one made of the frame (h, w, 3). InputError: an
    adapter for another model.
    """
    adapter = load_t2i_adapter(folder, model.device, model.dtype)
    config, levels, factor = adapter.config, model.unet.config.widths, model.vae.config.factor
    if (config.widths, config.factor) != (levels, factor):
        raise InputError(
            f"{folder}: is for widths {config.widths} and {config.factor} pixels per latent; "
            f"the weights have {levels} and {factor}"
        )
    picture = condition_picture(kind, condition, frame, config.channels)
    return [scale * feature for feature in adapter(picture.to(model.device, model.dtype))]


def condition_picture(kind: str, condition: str, frame: np.ndarray, channels: int) -> Tensor:
    """What an adapter is shown, (1, channels, h, w) of values 0..1, as large as the frame.

    condition: see `features`. InputError where canny would have to be found without OpenCV.
    """
    h, w = frame.shape[:2]
    if condition:
        picture = fit_frame(read_image(condition), (w, h), "stretch")
    else:
        check_condition(kind, condition)
        picture = canny(frame) if kind == "canny" else patches(frame)
    shown = np.array(Image.fromarray(picture).convert("L" if channels == 1 else "RGB"))
    shown = torch.from_numpy(shown).reshape(h, w, channels).permute(2, 0, 1)
    return shown[None].float() / 255


def canny(frame: np.ndarray) -> np.ndarray:
    """White edges on black of a frame (h, w, 3), in the same form (Canny 1986)."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "canny edges are found by OpenCV, which is missing: pip install 'anyv2v[canny]'; or "
            "give a picture of them, option condition"
        ) from error
    return np.repeat(cv2.Canny(np.ascontiguousarray(frame), *GRADIENTS)[..., None], 3, axis=2)


def patches(frame: np.ndarray) -> np.ndarray:
    """The mean colours of a frame (h, w, 3), in patches of about PATCH pixels, in the same form."""
    h, w = frame.shape[:2]
    grid = tuple(max(1, round(side / PATCH)) for side in (w, h))
    small = Image.fromarray(frame).resize(grid, Image.Resampling.BOX)
    return np.array(small.resize((w, h), Image.Resampling.NEAREST))
