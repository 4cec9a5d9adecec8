"""Detection of other models' weights by a tensor that only those models have."""

import re
from dataclasses import dataclass

from anyv2v.weights.manifest import Shapes


@dataclass(frozen=True)
class ForeignModel:
    """A model that this package does not read, and the tensor by which it is recognized."""

    description: str
    pattern: str
    """Regular expression that the tensor's whole name matches."""
    shape: tuple[int | None, ...] | None = None
    """The tensor's shape, where None is any length; None alone is any shape."""

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this name and shape is the one that identifies the model."""
        if not re.fullmatch(self.pattern, name):
            return False
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            expected in (None, length) for length, expected in zip(shape, self.shape, strict=True)
        )


LORA = ForeignModel("a LoRA, not a whole model", r".*lora\w*[._](?:down|up|A|B)\..*")
FOREIGN_MODELS = {
    "unet": (
        LORA,
        # before SDXL, because Stable Video Diffusion has SDXL's label embedding too
        ForeignModel("Stable Video Diffusion's UNet", r".*\.(?:spatial_res_block|time_stack)\..*"),
        ForeignModel("SDXL's UNet", r"add_embedding\.linear_1\.weight|.*label_emb\.0\.0\.weight"),
    ),
    "vae": (
        LORA,
        ForeignModel(
            "a VAE of 16 channels, as SD3 and Flux have",
            r"(?:.*\.)?encoder\.conv_out\.weight",
            (32, None, 3, 3),
        ),
    ),
    "text": (
        LORA,
        ForeignModel("CLIP ViT-L's text tower", r"(?:.*\.)?token_embedding\.weight", (None, 768)),
    ),
    "vision": (
        LORA,
        ForeignModel("CLIP ViT-L's vision tower", r"(?:.*\.)?class_embedding", (1024,)),
    ),
    "adapter": (
        ForeignModel(
            "IP-Adapter FaceID, which needs a network of faces", r".*_lora\.(?:down|up)\..*"
        ),
        ForeignModel("IP-Adapter Plus, with a resampler", r"image_proj\.latents"),
        ForeignModel("IP-Adapter Full Face", r"image_proj\.proj\.3\.weight"),
        ForeignModel("an IP-Adapter for SDXL", r"image_proj\.norm\.weight", (2048,)),
    ),
}
"""The models to look for among the tensors of each component."""


def detect_foreign(component: str, shapes: Shapes, expected: Shapes) -> str:
    """Say in one line which other model these tensors belong to; "" if none is recognized.

    A tensor that `expected` has too, with the same shape, identifies nothing.
    """
    for model in FOREIGN_MODELS[component]:
        for name, shape in shapes.items():
            if model.matches(name, shape) and tuple(expected.get(name, ())) != tuple(shape):
                if name in expected:
                    return f"is {model.description}: {name} is {shape}, should be {expected[name]}"
                missing = next((n for n in expected if n not in shapes), None)
                instead = f"; there should be {missing} {expected[missing]}" if missing else ""
                return f"is {model.description}: it holds {name} {shape}{instead}"
    return ""
