"""Conversion of a published video model, Stable Diffusion 1.x, adapter for it, or CLIP."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from anyv2v.convert.formats import (
    adapters,
    consisti2v,
    huggingface,
    open_clip,
    seine,
    stable_diffusion,
    vgen,
    wan,
    whole_clip,
)
from anyv2v.convert.model import FLOATS, Model, write_model
from anyv2v.errors import InputError
from anyv2v.weights import hub
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import CONFIG, MANIFEST, Shapes, read_json

Reader = Callable[[Path, torch.dtype | None], Model]
"""Opens a published model: (its folder or file, the dtype to convert to or None) -> the model."""

SUPPORTED = (
    "needed is a Hugging Face folder of I2VGen-XL, ConsistI2V, Wan 2.2 TI2V-5B, or of an image "
    f"editor, with {huggingface.INDEX}, or a folder with the files of the original release of "
    f"I2VGen-XL, {', '.join(vgen.FILES)}, or of Wan 2.2 TI2V-5B, {wan.VAE_FILE} and others, "
    f"or a folder with SEINE's {seine.UNET_FILE} and {seine.FOLDER}, "
    f"or the file of an IP-Adapter, {' or '.join(adapters.SUFFIXES)}, or a folder of a CLIP with "
    f"the config.json of transformers or with {open_clip.CONFIG}"
)
"""The end of an error message: the folders and files that can be converted."""
LORA = "pytorch_lora_weights.safetensors"
"""File name of a published LoRA, which cannot be converted."""
PIPELINES: dict[str, Reader] = {
    "I2VGenXLPipeline": huggingface.read,
    **dict.fromkeys(consisti2v.PIPELINES, consisti2v.read),
    "StableDiffusionPipeline": stable_diffusion.read,
    "StableDiffusionInstructPix2PixPipeline": stable_diffusion.read,
    **dict.fromkeys(wan.PIPELINES, wan.read),
}
"""The "_class_name" in a Hugging Face folder's model_index.json -> the function that opens the
folder."""


def convert(
    src: str | Path,
    dst: str | Path,
    expected: Callable[[dict], Mapping[str, Shapes]],
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Converts a published model to a weights folder, tensor by tensor; returns its config.json.

    src: the model's folder or file, or a cache folder of the Hugging Face hub that holds one
    snapshot. dst: the folder to write; it appears whole or not at all. expected: function of our
    config.json that returns component (such as "unet") -> name of a parameter in our network -> its
    shape. dtype: float32, float16 or bfloat16; None (the default) keeps the published dtypes.
    force: whether to replace a folder that was converted before. progress: called with (bytes of
    weights written so far, bytes in all).

    Raises InputError if src is not a model that can be converted, if dst cannot be written, if the
    configs describe a network that is not implemented, or if tensors are missing, extra or of a
    wrong shape (the message lists them); also, but only while writing, if a value is not finite or
    would not be finite in dtype.
    """
    src, dst = hub.only_snapshot(src), Path(dst)
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype is {dtype}; weights are kept in {', '.join(map(str, FLOATS))}")
    read = _reader(src)
    check_target(dst, force, src)
    model = read(src, dtype)
    try:
        shapes = expected(model.config)
    # the networks are built as the configs say, and torch raises its own errors where that fails
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{src}: its configs make no network: {error}") from error
    write_model(model, dst, shapes, dtype, force, progress)
    return model.config


def _reader(src: Path) -> Reader:
    """Finds the function that opens this form of a model."""
    if not src.exists():
        raise InputError(f"{src}: no such folder")
    if not src.is_dir():
        if src.suffix in adapters.SUFFIXES:
            return adapters.read_ip_adapter
        raise InputError(f"{src}: is a file; {SUPPORTED}")
    if (src / huggingface.INDEX).is_file():
        pipeline = read_json(src / huggingface.INDEX).get("_class_name")
        if not isinstance(pipeline, str) or pipeline not in PIPELINES:
            raise InputError(
                f"{src / huggingface.INDEX}: holds {pipeline!r}; one of {', '.join(PIPELINES)} "
                "is needed"
            )
        return PIPELINES[pipeline]
    if (src / seine.UNET_FILE).is_file():
        return seine.read
    if wan.is_original(src):
        return wan.read_original
    if adapters.is_t2i_adapter(src):
        return adapters.read_t2i_adapter
    # a folder of I2VGen-XL's original release may hold the other files of its CLIP too
    if not (src / vgen.UNET).is_file() and whole_clip.is_whole_clip(src):
        return whole_clip.read
    if any((src / name).is_file() for name in vgen.FILES):
        return vgen.read
    if (src / MANIFEST).is_file() and (src / CONFIG).is_file():
        raise InputError(f"{src}: is converted already")
    if (src / LORA).is_file():
        raise InputError(f"{src}: is a LoRA, not a whole model; {SUPPORTED}")
    what = f"has no {huggingface.INDEX}" if any(src.iterdir()) else "is empty"
    raise InputError(f"{src}: {what}; {SUPPORTED}")
