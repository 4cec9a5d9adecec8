"""A whole CLIP (Radford et al. 2021): texts and images as unit vectors of one space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from anyv2v.clip.preprocess import PreprocessConfig, preprocess_standard
from anyv2v.clip.text import TextConfig, TextEncoder
from anyv2v.clip.tokenizer import Tokenizer, TokenizerConfig
from anyv2v.clip.vision import VisionConfig, VisionEncoder
from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.media.image import as_frames

LETTERS = {
    (384, 12): "S",
    (512, 12): "M",
    (768, 12): "B",
    (1024, 24): "L",
    (1280, 32): "H",
    (1408, 40): "g",
    (1664, 48): "bigG",
}
"""Width and number of layers of the image encoder -> the letter of its size in the published
names."""
USUAL_SIZE = 224
"""The size of the input image, in pixels, that a model's name leaves out."""
BATCH = 16
"""How many texts or images are encoded at once, which bounds the memory that is used."""


class TextEmbedder(TextEncoder):
    """CLIP's text encoder with its projection: maps a text's token ids to its embedding."""

    def __init__(self, config: TextConfig, projection_dim: int):
        """Builds the encoder and a projection to `projection_dim`, the length of an embedding."""
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def embed(self, ids: Tensor, end: int) -> Tensor:
        """Maps token ids (b, n) int64 to embeddings (b, projection_dim), in the weights' dtype.

        The embedding is the projected output at the first end token of a text, whose id is `end`;
        so it does not depend on the padding that follows. Raises InputError if a text has no end
        token, or like `forward`.
        """
        is_end = ids == end
        if not is_end.any(dim=1).all():
            raise InputError(f"a text has no end token, {end}")
        states = self(ids, clip_skip=0)
        first = is_end.int().argmax(dim=1)
        return self.projection(states[torch.arange(len(ids), device=ids.device), first])


@dataclass(frozen=True)
class CLIPModel:
    """A loaded CLIP, which maps texts and images to vectors whose cosines say how they match."""

    name: str
    """The variant, such as "ViT-B/32 openai": size, patch size and what it was trained on."""
    fingerprint: str
    """Sha256, in hex, over the weights, the tokenizer and the config."""
    vision: VisionEncoder
    """The image encoder with its projection."""
    preprocess: PreprocessConfig
    """What images are scaled to and normalized by."""
    text: TextEmbedder | None = None
    """The text encoder with its projection; None if the weights have none."""
    tokenizer: Tokenizer | None = None
    """The tokenizer of the text encoder; None if there is no text encoder."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vision.projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the encoders compute."""
        return self.vision.projection.weight.dtype

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines in CLIP's logits, such as 100. Raises as `encode_text`."""
        return float(self._text_encoder()[0].logit_scale.float().exp())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encodes n texts as unit vectors: float32 (n, projection_dim) on the weights' device.

        A text that is too long is cut, which is logged (see `Tokenizer`). Texts with CJK ideographs
        are split into other tokens than by OpenCLIP and transformers 5. Raises InputError if the
        weights have no text encoder, if there are no texts, or if an embedding is zero or not
        finite.
        """
        text, tokenizer = self._text_encoder()
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts is {texts!r}; a list of one text or more is needed")
        ids = torch.cat([tokenizer(each) for each in texts]).to(self.device)
        return _unit([text.embed(batch, tokenizer.end) for batch in ids.split(BATCH)])

    def encode_images(self, frames: np.ndarray | Tensor) -> Tensor:
        """Encodes n images, uint8 RGB (n, h, w, 3), as unit vectors: float32 (n, projection_dim).

        They are scaled and cropped as `preprocess_standard` does. Raises InputError if the images
        have another dtype or shape, if there are none, or if an embedding is zero or not finite.
        """
        images = as_frames(frames)
        return _unit([self.vision(pixels) for pixels in self._pixels(images)])

    def _pixels(self, images: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(images), BATCH):
            pixels = preprocess_standard(images[start : start + BATCH], self.preprocess)
            yield pixels.to(self.device, self.dtype)

    def _text_encoder(self) -> tuple[TextEmbedder, Tokenizer]:
        if self.text is None or self.tokenizer is None:
            raise InputError(f"{self.name} has no text encoder with a projection; a CLIP is needed")
        return self.text, self.tokenizer


def _unit(batches: list[Tensor]) -> Tensor:
    """Joins batches of vectors, each made as long as 1: float32."""
    # in float64, whose range holds the square of every float32
    vectors = torch.cat(batches).double()
    lengths = vectors.norm(dim=-1, keepdim=True)
    if not (lengths.isfinite() & (lengths > 0)).all():
        raise InputError(
            f"an embedding is zero or not finite, computed in {batches[0].dtype}; "
            "float32 or other weights are needed"
        )
    return (vectors / lengths).float()


def size_name(config: VisionConfig) -> str:
    """Returns the published name of an image encoder's size, such as "ViT-B/32" or "ViT-L/14@336".

    An encoder of a size that was never published is named by its width and its number of layers,
    such as "ViT-48x3/7@28".
    """
    width, layers = config.hidden_size, config.layers
    letter = LETTERS.get((width, layers), f"{width}x{layers}")
    size = "" if config.image_size == USUAL_SIZE else f"@{config.image_size}"
    return f"ViT-{letter}/{config.patch_size}{size}"


def builders(config: dict) -> dict[str, Callable[[], nn.Module]]:
    """Returns the functions that build the networks "text" and "vision" of a whole CLIP.

    config: the contents of the weights folder's config.json. The networks are built without loading
    weights. Raises InputError if a section of the config is missing or wrong, or the sections do
    not match each other.
    """
    text, vision = section(config, "text", TextConfig), section(config, "vision", VisionConfig)
    section(config, "tokenizer", TokenizerConfig)
    size = section(config, "preprocess", PreprocessConfig).size
    if size != vision.image_size:
        raise InputError(f"preprocess: size {size} is not vision: image_size {vision.image_size}")
    return {
        "text": lambda: TextEmbedder(text, vision.projection_dim),
        "vision": lambda: VisionEncoder(vision),
    }
