"""Weights of other models, told by a tensor that gives them away."""

import re
from dataclasses import dataclass

from anyv2v.weights.manifest import Shapes


@dataclass(frozen=True)
class Stranger:
    """tensor: a pattern of names. shape: what it has there; None in it stands for any number."""

    what: str
    tensor: str
    shape: tuple[int | None, ...] | None = None

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        if not re.fullmatch(self.tensor, name):
            return False
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            wanted in (None, found) for found, wanted in zip(shape, self.shape, strict=True)
        )


LORA = Stranger("a LoRA, not a whole model", r".*lora\w*[._](?:down|up|A|B)\..*")
STRANGERS = {
    "unet": (
        LORA,
        # before SDXL, which it has the embedding in common with
        Stranger("Stable Video Diffusion's UNet", r".*\.(?:spatial_res_block|time_stack)\..*"),
        Stranger("SDXL's UNet", r"add_embedding\.linear_1\.weight|.*label_emb\.0\.0\.weight"),
    ),
    "vae": (
        LORA,
        Stranger(
            "a VAE of 16 channels, as SD3 and Flux have",
            r"(?:.*\.)?encoder\.conv_out\.weight",
            (32, None, 3, 3),
        ),
    ),
    "text": (
        LORA,
        Stranger("CLIP ViT-L's text tower", r"(?:.*\.)?token_embedding\.weight", (None, 768)),
    ),
    "vision": (
        LORA,
        Stranger("CLIP ViT-L's vision tower", r"(?:.*\.)?class_embedding", (1024,)),
    ),
    "adapter": (
        Stranger("IP-Adapter FaceID, which needs a network of faces", r".*_lora\.(?:down|up)\..*"),
        Stranger("IP-Adapter Plus, with a resampler", r"image_proj\.latents"),
        Stranger("IP-Adapter Full Face", r"image_proj\.proj\.3\.weight"),
        Stranger("an IP-Adapter for SDXL", r"image_proj\.norm\.weight", (2048,)),
    ),
}


def recognise(component: str, found: Shapes, wanted: Shapes) -> str:
    """What other model these tensors are, in one line; "" if none is recognised."""
    for stranger in STRANGERS[component]:
        for name, shape in found.items():
            if stranger.matches(name, shape) and tuple(wanted.get(name, ())) != tuple(shape):
                if name in wanted:
                    return f"is {stranger.what}: {name} is {shape}, should be {wanted[name]}"
                missing = next((n for n in wanted if n not in found), None)
                instead = f"; there should be {missing} {wanted[missing]}" if missing else ""
                return f"is {stranger.what}: it holds {name} {shape}{instead}"
    return ""
