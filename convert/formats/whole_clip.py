"""Whole CLIPs as transformers (CLIPModel) or OpenCLIP publish them: both encoders in one file."""

import re
from pathlib import Path

import torch

from anyv2v.convert.files import Weights, open_weights
from anyv2v.convert.formats import clip, open_clip
from anyv2v.convert.formats.huggingface import check_vocabulary
from anyv2v.convert.hf_config import HFConfig
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.convert.rename import Rule, rules
from anyv2v.errors import InputError
from anyv2v.weights.folder import clip_tokenizer
from anyv2v.weights.manifest import CLIP, FORMAT, ORIGIN, read_json

STEM = "model"
"""Stem of transformers' weight files, a key of `anyv2v.convert.files.STEMS`."""
TEXT = (*clip.TEXT, *rules({"text_projection": "projection"}), Rule("logit_scale", "logit_scale"))
"""The rules that rename the parameters of the text encoder with its projection."""
VISION_PREFIXES = ("vision_model.", "visual_projection.")
"""Beginnings of the names of the image encoder's parameters; all others are the text encoder's."""

CLIP_DEFAULTS = {"model_type": "clip", "projection_dim": 512}
LEGACY_END = 2
"""The eos_token_id of old configs, which is wrong, and which transformers therefore takes to mean
the token with the greatest id of a text."""
PREPROCESS_DEFAULTS = {
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""The values that transformers' CLIPImageProcessor assumes for absent fields; those of the second
and later fields are the only ones that are supported."""

OPENAI = re.compile(r"clip-vit-[a-z]+-patch\d+(-\d+)?", re.IGNORECASE)
"""Matches the names of OpenAI's repositories, such as clip-vit-large-patch14-336."""
OPEN_CLIP = re.compile(r"clip-vit-[a-z]+-\d+(-\d{3})?-(?P<data>.+)", re.IGNORECASE)
"""Matches the names of OpenCLIP's repositories, such as CLIP-ViT-H-14-laion2B-s32B-b79K."""
LONGEST_ORIGIN = 60
"""The most characters of a folder's name that name a model."""


def is_whole_clip(src: Path) -> bool:
    """Whether `src` is a published folder of a whole CLIP, judged by its config files."""
    return (src / open_clip.CONFIG).is_file() or _is_transformers(src)


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a published folder of a whole CLIP; where it has both forms, that of transformers.

    dtype: the dtype to convert to; if it is float16, half-precision weight files are preferred to
    others. Raises InputError if a file is missing, or if the model is not implemented.
    """
    if _is_transformers(src) and not _has_only_open_clip(src):
        return _read_transformers(src, prefer_half=dtype == torch.float16)
    config, networks, (vocab, merges) = open_clip.read(src)
    return Model(_config(src, config, {}), clip_tokenizer(vocab, merges), networks)


def origin(src: Path, config: dict) -> str:
    """Returns what a model was trained on or by whom, as its published name says it.

    Examples are "openai" and "laion2B-s32B-b79K". The published name is that of the repository, in
    a cache of the Hugging Face hub; or else the folder's; or else the one in transformers'
    config.json, its content `config`. If none of them follows the scheme of OpenAI or OpenCLIP, the
    result is the first of them.
    """
    folder = src.resolve()
    cached = re.fullmatch(r"models--(?:.+--)?(.+)", folder.parent.parent.name)
    names = [cached.group(1) if cached else folder.name]
    if isinstance(saved := config.get("_name_or_path"), str):
        names.append(saved.rstrip("/").rpartition("/")[2])
    for name in names:
        if OPENAI.fullmatch(name):
            return "openai"
        if match := OPEN_CLIP.fullmatch(name):
            return _plain(match["data"])
    return _plain(names[0])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+@-]+", "-", name, flags=re.ASCII)[:LONGEST_ORIGIN]


def _is_transformers(src: Path) -> bool:
    path = src / "config.json"
    return path.is_file() and read_json(path).get("model_type") == CLIP_DEFAULTS["model_type"]


def _has_only_open_clip(src: Path) -> bool:
    """Whether of a folder with both forms only OpenCLIP's weights were downloaded."""
    theirs = (*src.glob("model*.safetensors*"), *src.glob("pytorch_model*.bin*"))
    return (src / open_clip.CONFIG).is_file() and not theirs


def _read_transformers(src: Path, prefer_half: bool) -> Model:
    where, values = str(src / "config.json"), read_json(src / "config.json")
    sections = clip_config(where, values)
    vocab, merges = clip.tokenizer_files(src)
    check_vocabulary(src, vocab, sections["text"]["vocab_size"])
    special = clip.tokenizer_config(src, vocab, sections["text"]["tokens"])
    _check_end(where, _tower(where, values, "text"), vocab, special["end"])
    size = sections["vision"]["image_size"]
    preprocess = preprocess_config(*_processor(src), size)
    weights = open_weights(src, STEM, prefer_half)
    return Model(
        _config(src, sections | {"tokenizer": special, "preprocess": preprocess}, values),
        clip_tokenizer(vocab, merges),
        _networks(weights),
    )


def _config(src: Path, sections: dict, values: dict) -> dict:
    return {"format": FORMAT, "model": CLIP, ORIGIN: origin(src, values), **sections}


def _networks(weights: Weights) -> dict[str, PublishedNetwork]:
    # older files store the buffers position_ids, which are just 0, 1, 2, ...
    weights = weights.select(lambda name: name.split(".")[-1] != "position_ids")
    return {
        "text": PublishedNetwork(
            weights.select(lambda name: not name.startswith(VISION_PREFIXES)), TEXT
        ),
        "vision": PublishedNetwork(
            weights.select(lambda name: name.startswith(VISION_PREFIXES)), clip.VISION
        ),
    }


def clip_config(where: str, values: dict) -> dict:
    """Translates transformers' config of a CLIPModel to the sections "text" and "vision".

    where: the file, as error messages name it. values: its content. Raises InputError if it is the
    config of another model or of one encoder alone, or if the network is not implemented.
    """
    config = HFConfig(where, values, CLIP_DEFAULTS)
    config.one_of("model_type", CLIP_DEFAULTS["model_type"])
    if values.get("architectures") not in (None, ["CLIPModel"]):
        raise config.error("architectures", "only ['CLIPModel'], a whole CLIP, is supported")
    # both encoders project to this length, whatever their own configs say
    vision = _tower(where, values, "vision") | {"projection_dim": config.count("projection_dim")}
    return {
        "text": clip.text_config(where, _tower(where, values, "text")),
        "vision": clip.vision_config(where, vision),
    }


def _tower(where: str, values: dict, name: str) -> dict:
    """The config of the encoder `name`: an old config.json may hold it twice, the second counts."""
    for key in (f"{name}_config_dict", f"{name}_config"):
        inner = values.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise InputError(f"{where}: {key} is {inner!r}, not a JSON object")
        if inner is not None:
            # of the class of the encoder alone, which transformers does not look at here
            return {field: value for field, value in inner.items() if field != "architectures"}
    return {}


def _check_end(where: str, text: dict, vocab: dict[str, int], end: str) -> None:
    """Checks that the token at which transformers reads a text's embedding is the tokenizer's end.

    Ours is the first end token of a text.
    """
    config = HFConfig(where, text, {"eos_token_id": 49407})
    greatest = config["eos_token_id"] == LEGACY_END and vocab[end] == max(vocab.values())
    if not greatest:
        config.one_of("eos_token_id", vocab[end])


def _processor(src: Path) -> tuple[str, dict]:
    """The file that describes the preprocessing, and what it says of it."""
    path = src / "preprocessor_config.json"
    # transformers 5 writes one file for tokenizer and image processor
    if not path.is_file() and (src / "processor_config.json").is_file():
        path = src / "processor_config.json"
        inner = read_json(path).get("image_processor")
        if not isinstance(inner, dict):
            raise InputError(f"{path}: image_processor is {inner!r}, not a JSON object")
        return str(path), inner
    return str(path), read_json(path)


def preprocess_config(where: str, values: dict, image_size: int) -> dict:
    """Translates transformers' config of a CLIPImageProcessor to the section "preprocess".

    where: the file, as error messages name it. values: its content. image_size: what the image
    encoder takes. Raises InputError if it describes anything but bicubic scaling of the shorter
    side to that size, a center crop, and normalization.
    """
    config = HFConfig(where, values, PREPROCESS_DEFAULTS)
    for name, value in list(PREPROCESS_DEFAULTS.items())[1:]:
        config.one_of(name, value)
    size = config["size"]
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    ours = clip.preprocess_config(where, values)
    if shortest != ours["size"]:
        raise config.error("size", f"it must be crop_size, {ours['size']}")
    if ours["size"] != image_size:
        raise InputError(f"{where}: crop_size is {ours['size']}; image_size is {image_size}")
    return ours
