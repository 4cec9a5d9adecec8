"""IP-Adapter (arXiv 2308.06721): an image as a second context of the cross-attentions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anyv2v import checks
from anyv2v.clip.preprocess import PreprocessConfig
from anyv2v.errors import InputError
from anyv2v.nn.linear import Linear

NARROWEST = 16
"""The largest ratio of a reference's longer side to its shorter one."""
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
"""Option -> prefixes of the sites that attend to the image.

IP-Adapter was trained with "all". The others are InstantStyle (arXiv 2404.02733), whose paper names
blocks of SDXL; its authors give these for Stable Diffusion 1.5 in instantX-research/InstantStyle,
infer_style_sd15.py: up_blocks.1 for the style, and down_blocks.2 and mid_block for the layout. They
call them "experimental, not obvious as SDXL".
"""


@dataclass(frozen=True)
class IPAdapterConfig:
    """Section "adapter" of config.json. Raises InputError for another number of levels."""

    tokens: int
    """Number of tokens, m, that an image becomes."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the tokens, that of the UNet's text tokens."""
    image_dim: int = field(metadata={"key": "image_width"})
    """Length of the image's CLIP embedding."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the UNet's features at each level, from full resolution down."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        if len(self.level_channels) != LEVELS:
            raise InputError(
                f"adapter: {len(self.level_channels)} widths; the UNet has {LEVELS} levels"
            )

    def channels(self, site: str) -> int:
        """Returns the number of channels of the features at a site."""
        stage, level = site.split(".")[:2]
        if stage == "mid":
            return self.level_channels[-1]
        return self.level_channels[int(level) if stage == "down" else LEVELS - 1 - int(level)]


class KeyValue(nn.Module):
    """Projects an image's tokens to key and value of one cross-attention."""

    def __init__(self, context_dim: int, channels: int):
        super().__init__()
        self.k = Linear(context_dim, channels, bias=False)
        self.v = Linear(context_dim, channels, bias=False)

    def forward(self, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Maps tokens (b, m, c') to key and value (b, m, heads, d)."""
        k, v = (linear(tokens).unflatten(-1, (heads, -1)) for linear in (self.k, self.v))
        return k, v


class IPAdapterNetwork(nn.Module):
    """Turns an image's CLIP embedding into tokens, and those into keys and values.

    The projections to keys and values are submodules with the paths of the UNet's sites.
    """

    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.config = config
        self.proj = Linear(config.image_dim, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)
        for site in SITES:
            _add_module(self, site, KeyValue(config.context_dim, config.channels(site)))

    def forward(self, embedding: Tensor) -> Tensor:
        """Maps CLIP embeddings (b, c) of images to their tokens (b, m, c').

        For a branch without an image, pass an embedding of zeros.
        """
        return self.norm(self.proj(embedding).unflatten(-1, (self.config.tokens, -1)))

    def read(self, tokens: Tensor, heads: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns site -> key and value of tokens (b, m, c'), (b, m, heads, d) each."""
        return {site: self.get_submodule(site)(tokens, heads) for site in SITES}


def scales(blocks: str, scale: float) -> dict[str, float]:
    """Returns site -> scale of the attention to the image, for the sites that attend to it.

    blocks: a key of `BLOCKS`. Raises InputError for another, and for a scale that is not a number
    from 0 up.
    """
    checks.one_of("blocks", blocks, tuple(BLOCKS))
    if checks.finite("scale", scale) < 0:
        raise InputError(f"scale: {scale!r} is below 0")
    return {site: float(scale) for site in SITES if scale and site.startswith(BLOCKS[blocks])}


def image_context(
    read: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Returns the `image` of `UNet2D.forward`: site -> key, value and scale, for sites in `scales`.

    read: site -> key and value, as `IPAdapterNetwork.read` returns them.
    """
    return {site: (*read[site], scale) for site, scale in scales.items()}


def pixels_of(image: np.ndarray, config: PreprocessConfig) -> Tensor:
    """Prepares an image, uint8 RGB (h, w, 3), as float32 (1, 3, size, size), as CLIP was trained.

    The shorter side is resized to `size`, bicubic, and the center is cropped. (The function
    `anyv2v.clip.preprocess.preprocess` follows I2VGen-XL's pipeline instead.) Raises InputError for
    an image so narrow that the crop would miss nearly all of it.
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


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Adds a submodule at a dotted path, with the modules in between."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)
