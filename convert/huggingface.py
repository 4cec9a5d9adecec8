"""A Hugging Face folder of I2VGen-XL -> a folder of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anyv2v.convert import clip, i2vgen, vae
from anyv2v.convert.files import Weights, open_weights
from anyv2v.convert.rename import Rule, rename
from anyv2v.errors import InputError
from anyv2v.weights.folder import Part, check_target, write_folder
from anyv2v.weights.manifest import CONFIG, FORMAT, MANIFEST, Shapes, difference, read_json
from anyv2v.weights.tensors import Layout, largest, overflows

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Component:
    """One network: its folder, the stem of its weight files, and the rules for its names."""

    folder: str
    stem: str
    table: Callable[[list[str]], tuple[Rule, ...]]


COMPONENTS = {
    "unet": Component("unet", "diffusion_pytorch_model", lambda names: i2vgen.UNET),
    "vae": Component("vae", "diffusion_pytorch_model", vae.table),
    "text": Component("text_encoder", "model", lambda names: clip.TEXT),
    "vision": Component("image_encoder", "model", lambda names: clip.VISION),
}


@dataclass(frozen=True)
class Plan:
    """What one output file will hold: our key -> their key, our key -> (dtype, shape)."""

    source: Weights
    theirs: dict[str, str]
    layout: Layout


def convert(
    src: str | Path,
    dst: str | Path,
    expected: Callable[[dict], dict[str, Shapes]],
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model of a Hugging Face folder in our format, tensor by tensor.

    expected: our config -> component -> our key -> shape. dtype: float32, float16 or bfloat16;
    None keeps the source's. force: replace a folder that was converted before. progress: called
    with the bytes written and the bytes there will be. DST appears whole or not at all.
    InputError: every missing, extra and misshapen key, before anything is written; configs that
    mean another computation; values that are not finite, here or in dtype.
    """
    src, dst = Path(src), Path(dst)
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype is {dtype}; weights are kept in {', '.join(map(str, FLOATS))}")
    _check_source(src)
    check_target(dst, force, src)
    vocab, merges = clip.tokenizer_files(src / TOKENIZER)
    config = read_config(src, vocab)
    plans = _plan(src, expected(config), dtype)

    def fetch(plan: Plan, name: str) -> Tensor:
        theirs = plan.theirs[name]
        where = f"{plan.source.files[theirs].path}: {theirs}"
        return _cast(where, plan.source.read(theirs), *plan.layout[name])

    parts = {name: Part(plan.layout, partial(fetch, plan)) for name, plan in plans.items()}
    write_folder(dst, config, vocab, merges, parts, force, progress)


def read_config(src: Path, vocab: dict[str, int]) -> dict:
    """Our config.json from theirs; InputError for what we do not implement."""

    def read(translate: Callable[[str, dict], dict], name: str) -> dict:
        return translate(str(src / name), read_json(src / name))

    unet = read(i2vgen.unet_config, "unet/config.json")
    text = read(clip.text_config, "text_encoder/config.json")
    vision = read(clip.vision_config, "image_encoder/config.json")
    preprocess = read(clip.preprocess_config, "feature_extractor/preprocessor_config.json")
    context = unet["context_width"]
    for name, width in (
        ("text_encoder: hidden_size", text["width"]),
        ("image_encoder: projection_dim", vision["projection_width"]),
    ):
        if width != context:
            raise InputError(f"{src}: {name} is {width}; unet: cross_attention_dim is {context}")
    if preprocess["size"] != vision["image_size"]:
        raise InputError(
            f"{src}: feature_extractor: crop_size is {preprocess['size']}; "
            f"image_encoder: image_size is {vision['image_size']}"
        )
    if (last := max(vocab.values())) >= text["vocab_size"]:
        raise InputError(
            f"{src}: tokenizer: ids go up to {last}; "
            f"text_encoder: vocab_size is {text['vocab_size']}"
        )
    return {
        "format": FORMAT,
        "backbone": "i2vgen",
        "defaults": {"size": [512, 512], "frames": 16, "fps": 8},
        "unet": unet,
        "vae": read(vae.vae_config, "vae/config.json"),
        "text": text,
        "vision": vision,
        "tokenizer": clip.tokenizer_config(src / TOKENIZER, vocab, text["tokens"]),
        "preprocess": preprocess,
        "schedule": read(i2vgen.schedule_config, "scheduler/scheduler_config.json"),
        "injection": i2vgen.injection_sites(unet),
    }


def _plan(src: Path, expected: dict[str, Shapes], dtype: torch.dtype | None) -> dict[str, Plan]:
    """Compare what there is with what is expected, in their names, and match the two."""
    plans, problems = {}, []
    for name, component in COMPONENTS.items():
        folder = src / component.folder
        source = open_weights(folder, component.stem, prefer_half=dtype == torch.float16)
        # a buffer of older files: 0, 1, 2, ...
        found = {
            n: facts for n, facts in source.layout.items() if not n.split(".")[-1] == "position_ids"
        }
        theirs = rename(expected[name], component.table(list(found)), to="theirs")
        wanted = {
            renamed.name: (*expected[name][ours], *(1,) * renamed.squeeze)
            for ours, renamed in theirs.items()
        }
        if differs := difference({n: shape for n, (_, shape) in found.items()}, wanted):
            problems.append(f"{folder}: {differs}")
        elif odd := [f"{n} is {t}" for n, (t, _) in found.items() if t not in FLOATS]:
            problems.append(f"{folder}: no weights of a supported dtype: {', '.join(odd)}")
        else:
            layout = {
                ours: (dtype or found[new][0], tuple(expected[name][ours]))
                for ours, (new, _) in theirs.items()
            }
            plans[name] = Plan(source, {o: new for o, (new, _) in theirs.items()}, layout)
    if problems:
        raise InputError(" | ".join(problems))
    return plans


def _cast(where: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    bound = largest(tensor)
    if not bound < float("inf"):
        raise InputError(f"{where} holds values that are not finite")
    if overflows(bound, dtype):
        raise InputError(
            f"{where}: its largest value, {bound:g}, becomes infinite in {dtype}; "
            "take float32 or bfloat16"
        )
    return tensor.to(dtype).reshape(shape)


def _check_source(src: Path) -> None:
    if not src.exists():
        raise InputError(f"{src}: no such folder")
    if not src.is_dir():
        raise InputError(f"{src}: is a file; a Hugging Face folder of I2VGen-XL is needed")
    index = src / "model_index.json"
    if not index.is_file():
        if (src / MANIFEST).is_file() and (src / CONFIG).is_file():
            raise InputError(f"{src}: is converted already")
        what = "has no model_index.json" if any(src.iterdir()) else "is empty"
        raise InputError(f"{src}: {what}; a Hugging Face folder of I2VGen-XL is needed")
    if (pipeline := read_json(index).get("_class_name")) != "I2VGenXLPipeline":
        raise InputError(f"{index}: holds {pipeline!r}; I2VGenXLPipeline is needed")
