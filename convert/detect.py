"""Recognition of models that cannot be converted, by a tensor that only such a model has."""

import re
from dataclasses import dataclass

from anyv2v.weights.manifest import Shapes


@dataclass(frozen=True)
class ForeignModel:
    """A model that cannot be converted, and the name and shape of a tensor that identifies it."""

    description: str
    """The model as error messages call it, such as "SDXL's UNet"."""
    pattern: str
    """Regular expression that must match the whole name of the tensor."""
    shape: tuple[int | None, ...] | None = None
    """The shape that the tensor must have, with None for an axis of any length. The default, None,
    accepts every shape."""

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor with this name and shape identifies the model."""
        if not re.fullmatch(self.pattern, name):
            return False
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            expected in (None, length) for length, expected in zip(shape, self.shape, strict=True)
        )


LORA = ForeignModel("a LoRA, not a whole model", r".*lora\w*[._](?:down|up|A|B)\..*")
WAN_IMAGE = r"(?:condition_embedder\.image_embedder\.ff\.net\.2|img_emb\.proj\.3)\.weight"
"""Matches the name of the last matrix of the image embedding in Wan's networks for pictures."""
FOREIGN_MODELS = {
    "transformer": (
        LORA,
        ForeignModel("Wan's VACE", r"vace_(?:blocks|patch_embedding)\..*"),
        ForeignModel("Wan's Animate", r"(?:face_adapter|motion_encoder|pose_patch_embedding)\..*"),
        ForeignModel(
            "Wan's FLF2V, which is told two frames",
            r"condition_embedder\.image_embedder\.pos_embed|img_emb\.emb_pos",
        ),
        ForeignModel("Wan 2.1's Fun-1.3B", WAN_IMAGE, (1536, None)),
        ForeignModel("Wan 2.1's I2V-14B or Fun-14B", WAN_IMAGE, (5120, None)),
        ForeignModel("a Wan that is told a picture by CLIP", WAN_IMAGE),
        ForeignModel(
            "one of the two networks of Wan 2.2's I2V-A14B",
            r"patch_embedding\.weight",
            (5120, 36, None, None, None),
        ),
        ForeignModel(
            "Wan's T2V-14B, or one of the two networks of 2.2's T2V-A14B",
            r"patch_embedding\.weight",
            (5120, 16, None, None, None),
        ),
        ForeignModel(
            "Wan 2.1's T2V-1.3B", r"patch_embedding\.weight", (1536, 16, None, None, None)
        ),
    ),
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
        ForeignModel(
            "Wan 2.1's VAE", r"encoder\.conv(?:_in|1)\.weight", (None, 3, None, None, None)
        ),
    ),
    "text": (
        LORA,
        ForeignModel("CLIP ViT-L's text tower", r"(?:.*\.)?token_embedding\.weight", (None, 768)),
        ForeignModel("T5's encoder, and not UMT5's", r"shared\.weight", (32128, None)),
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
"""Component (one network of a model, such as "unet") -> the models that `detect_foreign` looks for
in its weight files."""


def detect_foreign(component: str, shapes: Shapes, expected: Shapes) -> str:
    """Recognizes a model that cannot be converted by its tensors, and returns a message about it.

    The message is the end of a sentence about the file, such as "is a LoRA, not a whole model: it
    holds ...", or "" if no such model is recognized.

    component: the network that the file should hold, a key of `FOREIGN_MODELS`. shapes: the file's
    tensors. expected: the tensors that a convertible file would hold, under their published names;
    a tensor with the expected name and shape identifies no other model.
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
