"""IP-Adapter (arXiv 2308.06721), by which a UNet's cross-attentions also attend to an image."""

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
"""The largest ratio of longer to shorter side that a reference image may have."""
LEVELS = 4
"""Number of levels (resolutions) of Stable Diffusion 1.5's UNet."""
SITES = (
    *(f"down.{level}.spatial.{i}.block.cross" for level in (0, 1, 2) for i in (0, 1)),
    "mid.spatial.0.block.cross",
    *(f"up.{level}.spatial.{i}.block.cross" for level in (1, 2, 3) for i in (0, 1, 2)),
)
"""The sites (paths in the network) of the cross-attentions of Stable Diffusion 1.5's UNet."""

BLOCKS = {
    "all": ("down.", "mid.", "up."),
    "style": ("up.1.",),
    "style+layout": ("down.2.", "mid.", "up.1."),
}
"""Name of a choice -> prefixes of the sites (cross-attentions) that attend to the image.

IP-Adapter was trained with "all". The other choices are those of InstantStyle (arXiv 2404.02733).
Its paper names blocks of SDXL; for Stable Diffusion 1.5, the authors use up_blocks.1 for the style,
and down_blocks.2 and mid_block for the layout (instantX-research/InstantStyle,
infer_style_sd15.py), which they call "experimental, not obvious as SDXL".
"""


@dataclass(frozen=True)
class IPAdapterConfig:
    """Section "adapter" of an IP-Adapter's config.json: the sizes of its network.

    Raises InputError if `level_channels` does not have four values, one per level of the UNet.
    """

    tokens: int
    """Number of tokens per image, m."""
    context_dim: int = field(metadata={"key": "context_width"})
    """Length of the vector of an image's token, the same as for the UNet's text tokens."""
    image_dim: int = field(metadata={"key": "image_width"})
    """Length of an image's CLIP embedding."""
    level_channels: tuple[int, ...] = field(metadata={"key": "widths"})
    """Channels of the UNet's features at each level (resolution), from full resolution down."""

    def __post_init__(self):
        object.__setattr__(self, "level_channels", tuple(self.level_channels))
        if len(self.level_channels) != LEVELS:
            raise InputError(
                f"adapter: {len(self.level_channels)} widths; the UNet has {LEVELS} levels"
            )

    def channels(self, site: str) -> int:
        """Returns the number of channels of the UNet's features at a site, one of `SITES`."""
        stage, level = site.split(".")[:2]
        if stage == "mid":
            return self.level_channels[-1]
        return self.level_channels[int(level) if stage == "down" else LEVELS - 1 - int(level)]


class KeyValue(nn.Module):
    """The projections of an image's tokens to key and value of one cross-attention."""

    def __init__(self, context_dim: int, channels: int):
        super().__init__()
        self.k = Linear(context_dim, channels, bias=False)
        self.v = Linear(context_dim, channels, bias=False)

    def forward(self, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Maps image tokens (b, m, context_dim) to key and value, (b, m, heads, d) each.

        d is channels / heads.
        """
        k, v = (linear(tokens).unflatten(-1, (heads, -1)) for linear in (self.k, self.v))
        return k, v


class IPAdapterNetwork(nn.Module):
    """The network of an IP-Adapter: CLIP embedding -> image tokens -> keys and values.

    There is one `KeyValue` per cross-attention of the UNet, whose path in this network is the same
    as the attention's path (site) in the UNet.
    """

    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.config = config
        self.proj = Linear(config.image_dim, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)
        for site in SITES:
            _add_module(self, site, KeyValue(config.context_dim, config.channels(site)))

    def forward(self, embedding: Tensor) -> Tensor:
        """Maps CLIP embeddings (b, image_dim) of b images to their tokens (b, m, context_dim).

        An embedding of zeros stands for no image.
        """
        return self.norm(self.proj(embedding).unflatten(-1, (self.config.tokens, -1)))

    def read(self, tokens: Tensor, heads: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Computes the key and value of image tokens (b, m, c') at every cross-attention.

        Returns site (path of the attention in the UNet) -> key and value, (b, m, heads, d) each.
        heads: number of heads of the UNet's attentions.
        """
        return {site: self.get_submodule(site)(tokens, heads) for site in SITES}


def scales(blocks: str, scale: float) -> dict[str, float]:
    """Returns site -> `scale` for the cross-attentions (sites) that attend to the image.

    blocks: which of the sites attend to the image: "all", "style" or "style+layout", see `BLOCKS`.
    scale: weight of the image's attention; with 0 the result is empty. Raises InputError if
    `blocks` is unknown, or `scale` is negative or not finite.
    """
    checks.one_of("blocks", blocks, tuple(BLOCKS))
    if checks.finite("scale", scale) < 0:
        raise InputError(f"scale: {scale!r} is below 0")
    return {site: float(scale) for site in SITES if scale and site.startswith(BLOCKS[blocks])}


def image_context(
    read: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Returns site -> (key, value, scale) for the sites in `scales`.

    This is the argument `image` of `UNet2D.forward`. read: site -> key and value, the result of
    `IPAdapterNetwork.read`. scales: site -> weight of the image's attention, the result of the
    function `scales`.
    """
    return {site: (*read[site], scale) for site, scale in scales.items()}


def pixels_of(image: np.ndarray, config: PreprocessConfig) -> Tensor:
    """Prepares an image, uint8 RGB (h, w, 3), for CLIP: float32 (1, 3, size, size), normalized.

    As in CLIP's training, the shorter side is resized to `config.size` (bicubic) and the center is
    cropped; `anyv2v.clip.preprocess.preprocess` follows I2VGen-XL's pipeline instead. Raises
    InputError if the longer side is more than `NARROWEST` times the shorter one, since the crop
    would then miss nearly all of the image.
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
