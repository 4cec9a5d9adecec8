"""Any published form of I2VGen-XL, of Stable Diffusion 1.x or its adapters -> a folder of ours."""

from collections.abc import Callable
from pathlib import Path

import torch

from anyv2v.convert.formats import adapters, huggingface, stable_diffusion, vgen
from anyv2v.convert.model import FLOATS, Model, write_model
from anyv2v.errors import InputError
from anyv2v.weights import hub
from anyv2v.weights.folder import check_target
from anyv2v.weights.manifest import CONFIG, MANIFEST, Shapes, read_json

Reader = Callable[[Path, torch.dtype | None], Model]

NEEDED = (
    "needed is a Hugging Face folder of I2VGen-XL, or of an image editor, with "
    f"{huggingface.INDEX}, or a folder with the files of I2VGen-XL's original release, "
    f"{', '.join(vgen.FILES)}, or the file of an IP-Adapter, {' or '.join(adapters.SUFFIXES)}"
)
LORA = "pytorch_lora_weights.safetensors"
PIPELINES: dict[str, Reader] = {
    "I2VGenXLPipeline": huggingface.read,
    "StableDiffusionPipeline": stable_diffusion.read,
    "StableDiffusionInstructPix2PixPipeline": stable_diffusion.read,
}
"""What a Hugging Face folder says that it is -> what reads it."""


def convert(
    src: str | Path,
    dst: str | Path,
    expected: Callable[[dict], dict[str, Shapes]],
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write a published model in our format, tensor by tensor; gives back our config of it.

    src: its folder or file; of a cache folder of the Hugging Face hub the one snapshot is taken.
    expected: our config -> component -> our key -> shape. dtype: float32, float16 or bfloat16;
    None keeps the source's. force: replace a folder that was converted before. progress: called
    with the bytes written and the bytes there will be. DST appears whole or not at all.
    InputError: every missing, extra and misshapen key, before anything is written; configs that
    mean another computation; values that are not finite, here or in dtype.
    """
    src, dst = hub.only_snapshot(src), Path(dst)
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype is {dtype}; weights are kept in {', '.join(map(str, FLOATS))}")
    read = _reader(src)
    check_target(dst, force, src)
    model = read(src, dtype)
    try:
        shapes = expected(model.config)
    # the networks are built of what the configs say, and torch has its own words for what cannot be
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{src}: its configs make no network: {error}") from error
    write_model(model, dst, shapes, dtype, force, progress)
    return model.config


def _reader(src: Path) -> Reader:
    """What reads this form."""
    if not src.exists():
        raise InputError(f"{src}: no such folder")
    if not src.is_dir():
        if src.suffix in adapters.SUFFIXES:
            return adapters.read_ip_adapter
        raise InputError(f"{src}: is a file; {NEEDED}")
    if (src / huggingface.INDEX).is_file():
        pipeline = read_json(src / huggingface.INDEX).get("_class_name")
        if not isinstance(pipeline, str) or pipeline not in PIPELINES:
            raise InputError(
                f"{src / huggingface.INDEX}: holds {pipeline!r}; one of {', '.join(PIPELINES)} "
                "is needed"
            )
        return PIPELINES[pipeline]
    if adapters.is_t2i_adapter(src):
        return adapters.read_t2i_adapter
    if any((src / name).is_file() for name in vgen.FILES):
        return vgen.read
    if (src / MANIFEST).is_file() and (src / CONFIG).is_file():
        raise InputError(f"{src}: is converted already")
    if (src / LORA).is_file():
        raise InputError(f"{src}: is a LoRA, not a whole model; {NEEDED}")
    what = f"has no {huggingface.INDEX}" if any(src.iterdir()) else "is empty"
    raise InputError(f"{src}: {what}; {NEEDED}")
