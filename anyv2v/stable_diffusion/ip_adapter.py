"""IP-Adapter (arXiv 2308.06721): a picture as a second context of every cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.errors import InputError
from anyv2v.nn.linear import Linear

NARROWEST = 16
"""How many times as long as wide a reference may be."""
LEVELS = 4
SITES = (
    *(f"down.{level}.spatial.{i}.block.cross" for level in (0, 1, 2) for i in (0, 1)),
    "mid.spatial.0.block.cross",
    *(f"up.{level}.spatial.{i}.block.cross" for level in (1, 2, 3) for i in (0, 1, 2)),
)
"""The cross-attentions of Stable Diffusion 1.5's UNet."""

BLOCKS = {
    "all": ("down.", "mid.", "up."),
    "style": ("up.1.",),
    "style+layout": ("down.2.", "mid.", "up.1."),
}
"""Which blocks see the picture. All of them, as IP-Adapter was trained; or some of them, which is
InstantStyle (arXiv 2404.02733). The paper's blocks are SDXL's; those for Stable Diffusion 1.5 are
the ones that its authors give in instantX-research/InstantStyle, infer_style_sd15.py: up_blocks.1
for the style, with down_blocks.2 and mid_block for the layout too. They call them "experimental,
not obvious as SDXL".
"""


@dataclass(frozen=True)
class IPAdapterConfig:
    tokens: int
    """How many tokens a picture becomes."""
    context_width: int
    image_width: int
    """Of the picture's CLIP embedding."""
    widths: tuple[int, ...]
    """Channels of the UNet's features at each level."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != LEVELS:
            raise InputError(f"adapter: {len(self.widths)} widths; the UNet has {LEVELS} levels")

    def width(self, site: str) -> int:
        """Of the features at a site."""
        place, level = site.split(".")[:2]
        if place == "mid":
            return self.widths[-1]
        return self.widths[int(level) if place == "down" else LEVELS - 1 - int(level)]


class KeyValue(nn.Module):
    """Key and value of the picture's tokens at one cross-attention."""

    def __init__(self, context_width: int, width: int):
        super().__init__()
        self.k = Linear(context_width, width, bias=False)
        self.v = Linear(context_width, width, bias=False)

    def forward(self, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        k, v = (linear(tokens).unflatten(-1, (heads, -1)) for linear in (self.k, self.v))
        return k, v


class IPAdapterNetwork(nn.Module):
    """Its parameters are called like the sites of the UNet for which they are."""

    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.config = config
        self.proj = Linear(config.image_width, config.tokens * config.context_width)
        self.norm = nn.LayerNorm(config.context_width)
        for site in SITES:
            _place(self, site, KeyValue(config.context_width, config.width(site)))

    def forward(self, embedding: Tensor) -> Tensor:
        """A picture's CLIP embedding (b, c) -> its tokens (b, m, c').

        The branch without a picture gets the tokens of an embedding of zeros.
        """
        return self.norm(self.proj(embedding).unflatten(-1, (self.config.tokens, -1)))

    def read(self, tokens: Tensor, heads: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Site -> key and value of tokens (b, m, c'): (b, m, heads, d) each."""
        return {site: self.get_submodule(site)(tokens, heads) for site in SITES}


def scales(blocks: str, scale: float) -> dict[str, float]:
    """Site -> how much of the picture's attention is added there; sites without any are left out.

    blocks: a name in `BLOCKS`. InputError: another, or a scale that is no number from 0 up.
    """
    checks.one_of("blocks", blocks, tuple(BLOCKS))
    if checks.finite("scale", scale) < 0:
        raise InputError(f"scale: {scale!r} is below 0")
    return {site: float(scale) for site in SITES if scale and site.startswith(BLOCKS[blocks])}


def image_context(
    read: Mapping[str, tuple[Tensor, Tensor]], scale: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """What `UNet2D` takes as `image`: site -> key, value and scale, for the sites with a scale."""
    return {site: (*read[site], by) for site, by in scale.items()}


def pixels_of(image: np.ndarray, config: PreprocessConfig) -> Tensor:
    """uint8 RGB (h, w, 3) to float32 (1, 3, size, size) as CLIP was trained.

    The shorter side becomes `size`, bicubic, and the centre is cut out: unlike
    `anyv2v.clip.preprocess`, which does what I2VGen-XL's pipeline does. InputError: a picture of
    which the centre would be next to nothing.
    """
    picture, size = Image.fromarray(image), config.size
    short = min(picture.size)
    if max(picture.size) > NARROWEST * short:
        raise InputError(
            f"reference: a {picture.width}x{picture.height} picture is too narrow, only its centre "
            "would be seen; cut it to about a square first"
        )
    w, h = (size if side == short else int(size * side / short) for side in picture.size)
    left, top = (w - size) // 2, (h - size) // 2
    small = picture.resize((w, h), Image.Resampling.BICUBIC)
    small = small.crop((left, top, left + size, top + size))
    x = torch.from_numpy(np.array(small).transpose(2, 0, 1).copy()).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return ((x - mean) / std)[None]


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where its dotted path says."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)
